"""Read damaged files of every kind; print a table, and exit with 1 if one ended badly: `python -m fuzz --cases 99`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from fuzz.cases import fuzz
from fuzz.targets import targets


def main() -> int:
    """Run as many cases as asked for, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="number of damaged files")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damages")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of gymnasium and stable-baselines3, about odd spaces
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        report = fuzz(targets(Path(folder)), asked.cases, asked.seed, Path(folder))
    print("\n".join([*report.problems, report.table()]))
    return 1 if report.bad else 0


if __name__ == "__main__":
    sys.exit(main())
