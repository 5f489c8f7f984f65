from __future__ import annotations

import sys
from pathlib import Path

# The tests here share `core_toys`; pytest's importlib mode does not put this folder on the path by itself.
sys.path.insert(0, str(Path(__file__).parent))
