from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ctrl.experiments.suite.code import PACKAGES, copied, copy_code, fingerprint, imported, sources, training_sources


def files(folder: Path, **changes: str) -> dict[str, Path]:
    texts = {
        "ctrl/core.py": "x = 1\n",
        "ctrl/envs/tasks/recall.py": "def step():\n    return 1\n",
        "ctrl/experiments/suite/worker.py": "def main():\n    from ctrl.experiments.runs import worker\n",
        "ctrl/experiments/runs/worker.py": "from ctrl.experiments.runs.training import train\n",
        "ctrl/experiments/runs/training.py": "train = 1\n",
        "ctrl/experiments/report/plots.py": "colour = 1\n",
    }
    for name, text in (texts | {name.replace("__", "/") + ".py": text for name, text in changes.items()}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return copied(folder)


def test_only_what_changes_a_run_changes_the_fingerprint(tmp_path: Path) -> None:
    code = fingerprint(files(tmp_path / "a"))
    assert len(code) == 16
    assert fingerprint(files(tmp_path / "b", ctrl__experiments__report__plots="colour = 2\n")) == code
    assert fingerprint(files(tmp_path / "c", ctrl__core='"""Says more."""\n\nx = (  # one\n    1\n)\n')) == code
    assert fingerprint(files(tmp_path / "d", ctrl__core="x = 2\n")) != code
    assert fingerprint(files(tmp_path / "e", ctrl__experiments__runs__training="train = 2\n")) != code
    assert fingerprint(files(tmp_path / "f", ctrl__envs__tasks__recall="def step():\n    return 2\n")) != code
    assert fingerprint(files(tmp_path / "g", ctrl__new="x = 1\n")) != code


def test_a_text_that_is_more_than_a_comment_counts(tmp_path: Path) -> None:
    one, other = (files(tmp_path / word, ctrl__core=f"x = '{word}'\n") for word in "ab")
    assert fingerprint(one) != fingerprint(other)


def test_imports_are_found_wherever_they_are() -> None:
    text = (
        "from ctrl.experiments.runs import worker\n"
        "def f():\n    from ctrl.experiments.runs.build import build\nimport os\n"
    )
    assert {"ctrl/experiments/runs/worker.py", "ctrl/experiments/runs/build.py"} <= set(imported(text))


def test_what_trains_has_a_part_and_what_tells_of_it_has_none() -> None:
    names = {name.rpartition("/")[2] for name in training_sources(sources()) if name.startswith("ctrl/experiments/")}
    assert names >= {f"{name}.py" for name in ("config", "evaluate", "build", "tasks", "training", "worker")}
    assert names.isdisjoint({"cli.py", "suite.py", "results.py", "plots.py", "bench.py"})
    assert {"ctrl/envs/tasks/recall.py", "ctrl/__init__.py"} <= set(training_sources(sources()))


def test_a_copy_is_the_same_code_and_is_what_a_process_there_imports(tmp_path: Path) -> None:
    copy_code(tmp_path / "code")
    assert copied(tmp_path / "code").keys() == sources().keys()
    assert fingerprint(copied(tmp_path / "code")) == fingerprint(sources())
    command = f"from importlib.util import find_spec; print(*(find_spec(name).origin for name in {PACKAGES}))"
    result = subprocess.run([sys.executable, "-c", command], cwd=tmp_path / "code", capture_output=True, text=True)
    assert [path.startswith(str(tmp_path)) for path in result.stdout.split()] == [True] * len(PACKAGES)
