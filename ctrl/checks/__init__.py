"""Self-checks of memory cores: the five laws, for any core.

The files, in the order in which to read them:

- `result`: laws and their findings, which the checks of agents and tasks share
- `checking`: `check_core`, which checks all laws and reports a finding for each
- `laws/`: one file for each law, and the list of all checks in its `__init__`
"""
