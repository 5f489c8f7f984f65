from __future__ import annotations

import sys
from pathlib import Path

# The tests here share `core_toys` and `slow_reference`; in importlib mode pytest does not put this folder on the path.
sys.path.insert(0, str(Path(__file__).parent))
