from __future__ import annotations

import sys
from pathlib import Path

# The tests here share `agent_toys` and `checking_toys`; pytest's importlib mode does not put this folder on the path by
# itself.
sys.path.insert(0, str(Path(__file__).parent))
