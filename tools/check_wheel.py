"""Build the wheel, install it in a scratch environment elsewhere, and use it there as a user would.

    python tools/check_wheel.py [OUT]      # OUT keeps the wheel and the sdist that it is built from

The scratch environment borrows the dependencies of the running one, so that torch isn't installed twice. It does so by
a line in a `.pth` file. Python does not read the `.pth` files of a folder that is added in this way, so our own
editable install stays out. Every module is checked to come from the wheel all the same.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"ctrl": "ctrl", "envs": "ctrl/envs", "agents": "ctrl/agents", "experiments": "ctrl/experiments"}

# Runs in the scratch environment; its argument is the folder that all modules must come from.
IMPORT_ALL = """
import importlib, pkgutil, sys
import ctrl

def fail(name):
    raise SystemExit(f"importing {name} failed: {sys.exc_info()[1]!r}")

names = ["ctrl", *(module.name for module in pkgutil.walk_packages(ctrl.__path__, "ctrl.", fail))]
for name in names:
    file = importlib.import_module(name).__file__
    if file is None or not file.startswith(sys.argv[1]):
        raise SystemExit(f"{name} comes from {file}, not from the wheel in {sys.argv[1]}")
print("\\n".join(names))
"""


class WheelError(Exception):
    """Fault of the wheel, named by the message."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise WheelError(message)


def build_wheel(out: Path) -> Path:
    """Build the sdist, and the wheel from it, so that stale files in `build/` stay out and the sdist is tested too."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT), cwd=out)
    (wheel,) = out.glob("ctrl_memory-*.whl")
    return wheel


def source_files() -> set[str]:
    """Return the paths of all Python files in the four folders, as they are in a wheel."""
    return {
        f"{target}/{file.relative_to(ROOT / folder).as_posix()}"
        for folder, target in FOLDERS.items()
        for file in (ROOT / folder).rglob("*.py")
    }


def check_contents(wheel: Path) -> None:
    """Raise a `WheelError` unless the wheel holds all our modules, and only `ctrl` and its metadata at top level."""
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    alien = {name for name in top if name != "ctrl" and not name.endswith(".dist-info")}
    require(not alien, f"the wheel installs {sorted(alien)} at top level")
    modules = {name for name in names if name.endswith(".py")}
    missing, extra = source_files() - modules, modules - source_files()
    require(not missing and not extra, f"the wheel lacks {sorted(missing)} and has {sorted(extra)} in excess")
    require("ctrl/py.typed" in names, "the wheel lacks ctrl/py.typed")
    require(any(name.endswith("/LICENSE") for name in names), "the wheel lacks the LICENSE")


def make_environment(path: Path, wheel: Path) -> Path:
    """Create a virtual environment with only `wheel` and the dependencies of this one; return its Python."""
    venv.create(path, with_pip=True, symlinks=os.name != "nt")
    python = path / ("Scripts" if os.name == "nt" else "bin") / "python"
    # Before the dependencies are borrowed: otherwise pip would see the editable install and keep that.
    run(str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel), cwd=path)
    site_packages = Path(run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=path))
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n")
    return python


def check_installed(python: Path, scratch: Path) -> int:
    """Import every module and run the console script, away from the source tree; return the number of modules."""
    names = run(str(python), "-I", "-c", IMPORT_ALL, str(scratch / "env"), cwd=scratch).splitlines()
    expected = {path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in source_files()}
    require(set(names) == expected, f"not imported: {sorted(expected - set(names))}")
    usage = run(str(python.parent / "ctrl"), "--help", cwd=scratch)
    require("usage" in usage.lower(), f"`ctrl --help` prints no usage: {usage!r}")
    return len(names)


def run(*command: str, cwd: Path) -> str:
    """Run `command` in `cwd` without the caller's Python settings; return its output, or raise a `WheelError`."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    shown = " ".join(word for word in command if "\n" not in word)
    require(result.returncode == 0, f"`{shown}` failed:\n{result.stdout}{result.stderr}")
    return result.stdout.strip()


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="ctrl-wheel-") as folder:
        scratch = Path(folder).resolve()
        try:
            wheel = build_wheel(scratch)
            check_contents(wheel)
            count = check_installed(make_environment(scratch / "env", wheel), scratch)
        except WheelError as error:
            print(error, file=sys.stderr)
            return 1
        print(f"{wheel.name}: {count} modules imported, nothing but `ctrl` at top level, `ctrl --help` runs")
        if arguments:
            out = Path(arguments[0])
            out.mkdir(parents=True, exist_ok=True)
            for file in scratch.glob("ctrl_memory-*"):
                shutil.copy(file, out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
