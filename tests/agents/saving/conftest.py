from __future__ import annotations

import sys
from pathlib import Path

# The tests here share `file_toys`; pytest's importlib mode does not put this folder on the path.
sys.path.insert(0, str(Path(__file__).parent))
