"""`python -m ctrl.experiments`, which is what the command `ctrl` runs."""

from __future__ import annotations

from ctrl.experiments.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
