"""Entry point of the command `ctrl` and of `python -m ctrl.experiments`."""

from __future__ import annotations

from ctrl.experiments.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
