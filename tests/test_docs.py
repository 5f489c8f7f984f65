"""The README and the docs: examples run as written, and commands, flags, arguments and files exist."""

from __future__ import annotations

import inspect
import io
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch

import ctrl
from ctrl.envs import external

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted((ROOT / "docs").rglob("*.md"))
COMMAND_LINE_PAGE = (ROOT / "docs" / "reference" / "command-line.md").read_text(encoding="utf-8")
KEYS_PAGE = (ROOT / "docs" / "reference" / "log-keys.md").read_text(encoding="utf-8")
DETAILS_PAGE = (ROOT / "docs" / "implementation-details.md").read_text(encoding="utf-8")
TASKS_PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")


def blocks(language: str, page: str = README) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    return [text for kind, text in found if kind == language]


def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = blocks("python")
    assert len(examples) >= 3
    exec("\n".join(examples), {"__name__": "readme"})
    assert (tmp_path / "cartpole_with_memory.zip").is_file()


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def with_examples() -> list[Path]:
    return [page for page in PAGES if blocks("python", page.read_text(encoding="utf-8"))]


@pytest.fixture
def registries_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the cores, compressors and env ids that a page registers."""
    monkeypatch.setattr(ctrl, "_CORES", dict(ctrl._CORES))
    monkeypatch.setattr("ctrl.compressive.compressors._COMPRESSORS", dict(ctrl.compressive.compressors._COMPRESSORS))
    known = dict(gym.registry)
    yield
    gym.registry.clear()
    gym.registry.update(known)


@pytest.mark.usefixtures("registries_kept")
@pytest.mark.parametrize("page", with_examples(), ids=page_name)
def test_examples_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks("python", page.read_text(encoding="utf-8")))
    exec(compile(code, str(page), "exec", dont_inherit=True), {"__name__": page.stem})  # without our __future__


def test_pages_with_examples_are_found() -> None:
    found = [page_name(page) for page in with_examples()]
    assert len(found) >= 12 and {"docs/index.md", "docs/tasks.md", "docs/guides/own-task.md"} <= set(found)


def test_every_page_is_in_the_navigation() -> None:
    """`make docs` says it too, with MkDocs; this needs nothing."""
    listed = re.findall(r"^ +- .+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(listed) == [str(page.relative_to(ROOT / "docs")) for page in PAGES]


def test_the_readme_takes_five_minutes() -> None:
    assert len(README.splitlines()) <= 120


COMMAND_PAGES = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))]
COMMAND_PAGES.append(ROOT / "CHANGELOG.md")
OTHER_TOOLS = {"--no-deps", "--logdir"}
"""Flags of pip and TensorBoard that the pages name."""


def commands_of(page: str) -> list[str]:
    """Return the `ctrl` command lines of a page, in its blocks and inside its text, without `…` at their end."""
    fenced = [line for block in blocks("", page) for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    found = [" ".join(text.split()) for text in (*fenced, *re.findall(r"`([^`]+)`", prose))]
    return [command.removesuffix(" …") for command in found if command.startswith("ctrl ")]


def parse_command(command: str) -> None:
    """Check that the command line parses a command; one that only names a subcommand must have a `--help`."""
    from ctrl.experiments.cli import parse

    arguments = shlex.split(command.replace("PYTHON", sys.executable))[1:]
    if len(arguments) > 1 + (arguments[0] == "bench"):
        parse(arguments)
        return
    with redirect_stdout(io.StringIO()) as shown, pytest.raises(SystemExit):
        parse([*arguments, "--help"])
    assert f"usage: {command} [" in shown.getvalue()


@pytest.mark.parametrize("page", COMMAND_PAGES, ids=page_name)
def test_every_command_is_one(page: Path) -> None:
    from ctrl.experiments.errors import UserError

    wrong = []
    for command in commands_of(page.read_text(encoding="utf-8")):
        try:
            parse_command(command)
        except (SystemExit, AssertionError, UserError) as error:
            wrong.append(f"{command}: {error}")
    assert not wrong


def test_commands_are_found() -> None:
    page = "`ctrl\ntrain --steps 3`, not `ctrl`:\n\n```\nctrl envs \\\n  --json\npip x\n```\n\n`ctrl bench act …`"
    assert commands_of(page) == ["ctrl envs --json", "ctrl train --steps 3", "ctrl bench act"]
    assert len(commands_of(COMMAND_LINE_PAGE)) >= 10


@pytest.mark.parametrize("command", ["ctrl trian", "ctrl train --steps", "ctrl train --annealing", "ctrl bench fly"])
def test_a_command_that_is_none_is_noticed(command: str) -> None:
    with redirect_stderr(io.StringIO()), pytest.raises((SystemExit, AssertionError)):
        parse_command(command)


def test_every_flag_that_is_named_exists(capsys: pytest.CaptureFixture[str]) -> None:
    from ctrl.experiments.cli import EXAMPLES, parse

    benches = ("train", "solve", "envs", "act", "export", "unroll", "scale", "profile", "impala")
    for arguments in [*([name] for name in EXAMPLES if name), *(["bench", name] for name in benches)]:
        with pytest.raises(SystemExit):
            parse([*arguments, "--help"])
    known = {*re.findall(r"--[a-z-]+", capsys.readouterr().out), *OTHER_TOOLS}
    for page in COMMAND_PAGES:
        named = re.findall(r"`(--[a-z][a-z-]*)", page.read_text(encoding="utf-8"))
        assert known >= set(named), page_name(page)


@pytest.mark.parametrize("algorithm", ["MemoryPPO", "MemoryImpala"])
def test_every_key_that_is_logged_is_on_its_page(algorithm: str) -> None:
    from stable_baselines3.common.logger import Logger

    from ctrl import agents

    class Keys(Logger):
        """Remembers the names of all that is recorded."""

        def __init__(self) -> None:
            super().__init__(None, [])
            self.names: set[str] = set()

        def record(self, key: str, value: Any, exclude: Any = None) -> None:
            self.names.add(key)

    special = {"num_actors": 0} if algorithm == "MemoryImpala" else {"clip_range_vf": 0.2}
    core = {"core": "compressive", "core_kwargs": {"memory": [ctrl.Tier(8), ctrl.Tier(4, 2, "conv")]}}
    model = getattr(agents, algorithm)("MlpMemoryPolicy", "Pendulum-v1", n_steps=32, policy_kwargs=core, **special)
    logger = Keys()
    model.set_logger(logger)
    model.learn(96)
    named = [re.sub(r"\d+", "…", name) for name in logger.names if name != "hparams"]
    missing = [name for name in named if f"`{name}`" not in KEYS_PAGE]
    assert len(named) >= 20 and not missing


def test_linked_files_exist() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_install_commands_of_the_tasks_page_are_those_of_the_errors() -> None:
    for family in external.FAMILIES.values():
        assert f"`{' && '.join(family.install)}`" in TASKS_PAGE


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make ([a-z-]+)", README, flags=re.MULTILINE)
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


@pytest.mark.usefixtures("registries_kept")
def test_the_compressor_of_its_guide_is_used_and_learns() -> None:
    example, *_ = blocks("python", (ROOT / "docs" / "guides" / "own-compressor.md").read_text(encoding="utf-8"))
    made: dict[str, Any] = {"__name__": "own_compressor"}
    exec(example, made)
    core = made["core"]
    reset = torch.zeros(2, 20, dtype=torch.bool)
    core.unroll(torch.randn(2, 20, 24), core.initial_state(2), reset).reconstruction_loss.backward()
    compressor = core.compressors[0][0]
    assert type(compressor) is made["NewestAndMean"] and bool(compressor.gate.grad.any())


def test_arguments_that_ppo_alone_takes_are_all_named() -> None:
    from ctrl.agents import MemoryImpala, MemoryPPO

    section = DETAILS_PAGE.split("### From `MemoryPPO` to `MemoryImpala`")[1].split("\n## ")[0]
    ppo, impala = (inspect.signature(kind).parameters for kind in (MemoryPPO, MemoryImpala))
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", section, flags=re.MULTILINE)
    stated, in_place = (re.findall(r"`(\w+)`", " ".join(column)) for column in zip(*rows, strict=True))
    assert sorted(stated) == sorted(ppo.keys() - impala.keys())
    assert in_place and impala.keys() >= {*in_place, "windows_per_update", "batch_size"}
