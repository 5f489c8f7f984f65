"""Plain data from files: each wrong value is refused in one line that says where it is."""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ctrl.experiments.cli import main
from ctrl.experiments.config import TrainConfig
from ctrl.experiments.errors import UserError
from ctrl.experiments.options import TaskOptions
from ctrl.experiments.plain_data import build, reading
from ctrl.experiments.report.summary import CURVE_COLUMNS, RunSummary, read_curve
from ctrl.experiments.runs.run_folder import read_json
from ctrl.experiments.runs.tasks import require_named
from ctrl.experiments.trained.evaluate import OwnRun


@dataclass(frozen=True)
class Inner:
    """Part of `Outer`."""

    share: float


@dataclass(frozen=True)
class Outer:
    """All kinds of fields."""

    name: str
    count: int
    flag: bool
    inner: Inner
    maybe: int | None = None
    either: int | str = 0
    parts: list[Inner] = field(default_factory=list)
    table: dict[str, float] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    where: Path | None = None


SOUND: dict[str, Any] = {"name": "a", "count": 3, "flag": True, "inner": {"share": 1}}


def test_sound_data_is_built() -> None:
    full = Outer("a", 3, True, Inner(0.5), 4, "x", [Inner(1.0)], {"b": 2.0}, ("c", "d"))
    assert build(Outer, {**asdict(full), "where": "x/y"}, "it") == Outer(**{**vars(full), "where": Path("x/y")})
    assert build(Outer, SOUND, "it") == Outer("a", 3, True, Inner(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "it.name must be a str, got 3"),
        ({"count": True}, "it.count must be a int, got True"),
        ({"count": 10**30}, "it.count must be a int"),
        ({"count": 1.5}, "it.count must be a int, got 1.5"),
        ({"flag": 0}, "it.flag must be a bool, got 0"),
        ({"inner": []}, r"it.inner must be a table, got \[\]"),
        ({"inner": {"share": "x"}}, "it.inner.share must be a float, got 'x'"),
        ({"inner": {}}, "it.inner is not sound: it has no share"),
        ({"maybe": "x"}, "it.maybe must be a int, got 'x'"),
        ({"either": 0.5}, "it.either must be a str, got 0.5"),
        ({"parts": {"share": 1}}, "it.parts must be a list"),
        ({"parts": [{"share": 1}, 2]}, r"it.parts\[1\] must be a table, got 2"),
        ({"table": {"b": None}}, r"it.table\['b'\] must be a float"),
        ({"names": "text"}, "it.names must be a list, got 'text'"),
        ({"where": "a\0b"}, "it.where must be a path"),
        ({"more": 1}, r"it is not sound: unknown are \['more'\]"),
        ({"name": ["x" * 9999]}, "x …"),
    ],
)
def test_unsound_data_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build(Outer, SOUND | change, "it")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_any_error_of_what_a_file_holds_names_the_file(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"a.json holds no numbers: ZeroDivisionError: "),
        reading(Path("a.json"), "no numbers"),
    ):
        _ = 1 / 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff", "is not JSON"),
        (b"[" * 10**5 + b"]" * 10**5, "is nested too deeply"),
        (b'{"a": NaN}', "NaN is not a finite number"),
        (b'{"a": 1e999}', "1e999 is not a finite number"),
        (b'{"a": 1, "a": 2}', "a key is given twice"),
        (b"9" * 9999, "is not JSON"),
        (b" " * (2**24 + 1), "is longer than"),
    ],
    ids=["text", "deep", "nan", "large", "twice", "digits", "long"],
)
def test_what_is_no_json_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="is not a file"):
        read_json(tmp_path)


ROW = "16,0.5,nan,3,1000\n"


@pytest.mark.parametrize(
    "rest",
    [
        "32,x,0,3,9\n",
        "inf,1,0,3,9\n",
        "nan,1,0,3,9\n",
        "-1,1,0,3,9\n",
        "32,1,0\n",
        "32,inf,0,3,9\n",
        "\0\xff",
        "9" * 200_000,
    ],
)
def test_a_curve_ends_where_it_is_not_sound(rest: str, tmp_path: Path) -> None:
    (tmp_path / "curve.csv").write_bytes(f"{','.join(CURVE_COLUMNS)}\n{ROW}{rest}".encode("latin-1"))
    assert [(point.steps, point.return_, point.episodes) for point in read_curve(tmp_path / "curve.csv")] == [
        (16, 0.5, 3)
    ]
    assert read_curve(tmp_path) == []


def config_with(**changes: Any) -> dict[str, Any]:
    options = TrainConfig().to_json()
    for path, value in changes.items():
        group, _, name = path.partition("__")
        if name:
            options[group][name] = value
        else:
            options[group] = value
    return {"command": "ctrl train", "tensorboard": "x", "options": options}


@pytest.mark.parametrize(
    "changes",
    [
        {"options": 3},
        {"core": "unknown"},
        {"core": ["lstm"]},
        {"seed": "x"},
        {"seed": -1},
        {"task": None},
        {"task__env": 5},
        {"task__env_kwargs": "length=3"},
        {"task__env_kwargs": ["length"]},
        {"task__num_envs": 10**12},
        {"run__threads": 10**9},
        {"run__more": 1},
        {"memory__memory": "0,0"},
        {"memory__unknown": 3},
        {"ppo__learning_rate": -1},
        {"algorithm": "dqn"},
        {"impala": [1]},
    ],
    ids=str,
)
def test_a_config_that_is_not_sound_is_refused_in_one_line(
    changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = changes if "options" in changes else config_with(**changes)
    (tmp_path / "config.json").write_text(json.dumps(data))
    with zipfile.ZipFile(tmp_path / "model.zip", "w"):
        pass
    assert main(["evaluate", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "config.json holds" in error


def test_a_sound_config_survives(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_with()))
    own = OwnRun.of(tmp_path / "model.zip")
    assert own is not None and own.task == TaskOptions() and TrainConfig.read(tmp_path / "config.json") == TrainConfig()


def test_a_summary_that_is_not_sound_is_refused(tmp_path: Path) -> None:
    for content in ("[]", "{}", '{"core": 3}'):
        (tmp_path / "summary.json").write_text(content)
        with pytest.raises(UserError, match=r"summary.json holds no summary of a run"):
            RunSummary.read(tmp_path / "summary.json")


# Imports


@pytest.mark.parametrize(
    ("env", "arguments", "imports"),
    [
        ("ctrl/Recall-v0", ("length=5",), False),
        ("ctrl.envs:ctrl/Recall-v0", (), False),
        ("minigrid:MiniGrid-MemoryS7-v0", (), False),
        ("CartPole-v1", ("max_episode_steps=5",), False),
        ("evil_module:Env-v0", (), True),
        ("os:CartPole-v1", (), True),
        ("evil_module:ctrl/Recall-v0", (), True),
        ("GymV26Environment-v0", ("env_id=evil_module:Env-v0",), True),
    ],
)
def test_only_modules_that_the_user_named_are_imported(env: str, arguments: tuple[str, ...], imports: bool) -> None:
    task = TaskOptions(env=env, env_kwargs=arguments)
    require_named(task, "add --trust", trust=True)
    if not imports:
        require_named(task, "add --trust", trust=False)
        return
    with pytest.raises(UserError, match="imports a module, which runs code; if you trust the run, add --trust"):
        require_named(task, "add --trust", trust=False)


def test_evaluate_imports_the_module_of_a_run_only_if_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil_module.py").write_text("open('ran', 'w').close()\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(json.dumps(config_with(task__env="evil_module:Env-v0")))
    with zipfile.ZipFile(tmp_path / "run/model.zip", "w"):
        pass
    assert main(["evaluate", "run"]) == 2
    assert "add --trust, or name the task with --env" in capsys.readouterr().err and not (tmp_path / "ran").exists()
    assert main(["train", "--resume", "run"]) == 2
    assert "if you trust the run, add --trust" in capsys.readouterr().err and not (tmp_path / "ran").exists()
    assert main(["evaluate", "run", "--trust"]) == 2  # such a task does not exist, but the module was imported
    assert (tmp_path / "ran").exists()
