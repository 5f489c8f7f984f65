"""Run `mypy --strict` on all four folders under their import names, and on the tools and examples that use them.

mypy does not follow the finder of an editable install, so `mypy -p ctrl` in the root would silently skip `envs/`,
`agents/` and `experiments/`. This script creates a folder of links, `.typing/ctrl/…`, laid out like the wheel, and
checks that. It fails if mypy saw fewer files than there are.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FARM = ROOT / ".typing"
FOLDERS = ("envs", "agents", "experiments")
USERS = ("tools", "examples")
"""Folders of scripts, which nothing imports."""


def lay_farm() -> None:
    """Rebuild `.typing`: `ctrl/` with links to its entries and to the other folders, and links to those of scripts."""
    shutil.rmtree(FARM, ignore_errors=True)
    package = FARM / "ctrl"
    package.mkdir(parents=True)
    entries = [entry for entry in (ROOT / "ctrl").iterdir() if entry.name != "__pycache__"]
    for entry in (*entries, *(ROOT / folder for folder in FOLDERS)):
        (package / entry.name).symlink_to(Path("../..") / entry.relative_to(ROOT), entry.is_dir())
    for folder in USERS:
        (FARM / folder).symlink_to(Path("..") / folder, target_is_directory=True)


def run_mypy(*what: str) -> tuple[int, str]:
    """Run mypy on `what` from inside `.typing`, so that no other folder named `ctrl` is found first."""
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    command = [sys.executable, "-m", "mypy", *options, *what]
    result = subprocess.run(command, cwd=FARM, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return result.returncode, result.stdout


def as_source_path(line: str) -> str:
    """Rewrite `ctrl/envs/…` to `envs/…`, so that an editor finds the file."""
    return re.sub(rf"^ctrl/({'|'.join(FOLDERS)})/", r"\1/", line)


def main() -> int:
    lay_farm()
    code, output = run_mypy("-p", "ctrl")
    print("\n".join(map(as_source_path, output.splitlines())))
    expected = sum(1 for folder in ("ctrl", *FOLDERS) for _ in (ROOT / folder).rglob("*.py"))
    checked = re.search(r"(?:in|checked) (\d+) source files?", output)
    if checked is None or int(checked[1]) != expected:
        print(f"mypy checked {checked[1] if checked else 'no'} files of {expected}: is an __init__.py missing?")
        return 1
    for folder in USERS:
        code_of_scripts, output = run_mypy(folder)
        print(output, end="")
        code = code or code_of_scripts
    return code


if __name__ == "__main__":
    sys.exit(main())
