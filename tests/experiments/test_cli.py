from __future__ import annotations

import ast
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

import ctrl.experiments.config
from ctrl.experiments.bench.options import BENCHMARKS
from ctrl.experiments.cli import EXAMPLES, main, parse
from ctrl.experiments.config import CompareConfig, TrainConfig

CONFIGS = Path(ctrl.experiments.config.__file__).parent


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


@pytest.mark.parametrize("command", [name for name in EXAMPLES if name])
def test_help_of_each_subcommand_ends_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: ctrl {command}" in text
    assert f"ctrl {command}" in text.split("example")[-1]
    assert "None" not in text


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_all_subcommands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in EXAMPLES if name)


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name])
def test_the_examples_parse(name: str) -> None:
    for line in " ".join(EXAMPLES[name]).replace("\\ ", "").split("ctrl ")[1:]:
        assert parse(line.split())


def test_options_arrive() -> None:
    options = "--core gtrxl --env CartPole-v1 --env-kwargs a=1 b=x --memory 8,8x2 --gamma 0.9"
    config = parse(["train", *options.split()])
    assert isinstance(config, TrainConfig)
    assert (config.core, config.task.env, config.task.env_arguments) == ("gtrxl", "CartPole-v1", {"a": 1, "b": "x"})
    assert (config.memory.tiers, config.ppo.gamma) == ([(8, 1), (8, 2)], 0.9)
    comparison = parse(["compare", "--cores", "gru", "lstm", "--learning-rates", "gru=1e-3", "--match-parameters"])
    assert isinstance(comparison, CompareConfig)
    assert (comparison.cores, comparison.rates, comparison.match_parameters) == (("gru", "lstm"), {"gru": 1e-3}, True)


@pytest.mark.parametrize(
    ("given", "anneal", "clock"),
    [("", True, None), ("--no-anneal --clock", False, True), ("--anneal --no-clock", True, False)],
)
def test_a_flag_says_yes_and_its_opposite_no(given: str, anneal: bool, clock: bool | None) -> None:
    config = parse(["train", *given.split()])
    assert isinstance(config, TrainConfig)
    assert (config.ppo.anneal, config.memory.clock) == (anneal, clock)


def test_the_help_of_a_pair_of_flags_says_what_the_first_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--anneal, --no-anneal Let the learning rate fall linearly to 0 over the run" in told
    assert "or keep it as it is. (default: --anneal)" in told
    assert "--clock, --no-clock Let a quarter of the heads" in told
    assert "--overwrite Replace" in told  # where no is the default, there is nothing to say no to


OPTIONS = [*sorted(CONFIGS.rglob("*config.py")), *(CONFIGS / "bench" / f"{name}.py" for name in BENCHMARKS)]


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: path.stem)
def test_help_of_an_option_is_one_line_in_the_source(path: Path) -> None:
    """A line break in a field's docstring would appear in `--help`. Longer texts are given by `help=`."""
    classes = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    pairs = [pair for each in classes for pair in itertools.pairwise(each.body) if isinstance(pair[0], ast.AnnAssign)]
    told = [
        node.value.value for _, node in pairs if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]
    assert told
    assert [text for text in told if "\n" in str(text)] == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("train --core lstm --residual gated", "--residual is no option of lstm; it is one of compressive"),
        (
            "train --core lstm --memory 32,32x4",
            "--memory is no option of lstm; it is one of compressive, tra",
        ),
        ("train --core feedforward --heads 4", "--heads is no option of feedforward; it is one of compressive"),
        ("train --core transformer_xl --compressor conv", "--compressor is no option of transformer_xl"),
        ("train --core gtrxl --no-forgetting", "--forgetting is no option of gtrxl"),
        ("train --core gru --memory-learning-rate 1e-3", "--memory-learning-rate is no option of gru"),
        ("train --chrono-horizon 100", "--chrono-horizon is no option of compressive; it is one of lstm, gru, mingru"),
        ("compare --cores lstm gru --memory 8,8x2", "--memory is no option of lstm, gru; it is one of compressive"),
        ("ablate --chrono-horizon 100", "--chrono-horizon is no option of compressive"),
        ("train --algorithm impala --n-epochs 4", "--algorithm impala has no --n-epochs; --algorithm ppo does"),
        ("train --core lstmm", "did you mean 'lstm'"),
        ("train --env ctrl/Recal-v0", "did you mean 'ctrl/Recall-v0'"),
        ("train --steps 0", "--steps must be at least 1"),
        ("train --compressor convv", "'conv'"),
        ("train --memory 2,8x4", "too small"),
        ("train --novelty-gain -1", "--novelty-gain must be a number, at least 0, got -1.0"),
        ("train --novelty-gain nan", "--novelty-gain must be a number, at least 0, got nan"),
        ("train --novelty-gain inf", "--novelty-gain must be a number, at least 0, got inf"),
        ("train --compressor conv --novelty-gain 2", "novelty_gain = 2.0 needs a compressor that measures novelty"),
        ("compare --cores lstm rnn", "unknown core 'rnn'"),
        ("ablate --variants conv+attention_reconstructio", "did you mean 'conv+attention_reconstruction'"),
        ("ablate --variants mean+task", "unknown variant 'mean+task'"),
        ("ablate --variants mean+none mean+none", "--variants names one twice: mean+none mean+none"),
        ("ablate --seeds 0", "--seeds must be at least 1, got 0"),
        ("ablate --jobs 0", "--jobs must be at least 1, got 0"),
        ("ablate --resume", "name it with --out"),
        ("ablate --resume --overwrite --out a", "give one of them"),
        ("ablate --markdown", "--markdown needs --table FILE"),
        ("ablate --table no.json", "no.json does not exist"),
        ("ablate --compressor max", "--compressor is what --variants chooses, got 'max'"),
        ("ablate --compression-gradient task", "--compression-gradient is what --variants chooses, got 'task'"),
        ("ablate --memory 2,8x4", "too small"),
        ("suite --tasks recall-25", "did you mean 'recall-250'"),
        ("suite --tasks t-maze t-maze", "--tasks names one twice: t-maze t-maze"),
        ("suite --cores lstm rnn", "unknown core 'rnn'"),
        ("suite --seeds 0", "--seeds must be at least 1, got 0"),
        ("suite --jobs 0", "--jobs must be at least 1, got 0"),
        ("suite --steps-scale 0", "--steps-scale must be above 0 and at most 1000, got 0.0"),
        ("suite --steps-scale nan", "--steps-scale must be above 0 and at most 1000, got nan"),
        ("suite --table nowhere", "nowhere does not exist"),
        ("evaluate no/such/run", "does not exist"),
        ("envs --family popgim", "did you mean 'popgym'"),
        ("envs --check ctrl/Recal-v0", "did you mean 'ctrl/Recall-v0'"),
        ("envs --check ctrl/Recall-v0 --sheet a.png", "give one of them"),
        ("envs --check ctrl/Recall-v0 --family ctrl", "--family lists tasks; it does not go with --check"),
        ("envs --sheet a.png --family ctrl", "--family lists tasks; it does not go with --sheet"),
        ("envs --sheet a.png --json", "--sheet draws a picture; it does not go with --json"),
        ("envs --env-kwargs length=3", "--env-kwargs needs --check ID"),
        ("envs --steps 10", "--steps needs --check ID"),
        ("envs --check ctrl/Recall-v0 --steps 0", "--steps must be at least 1, got 0"),
        ("bench envs --tasks ctrl/Recal-v0", "did you mean 'ctrl/Recall-v0'"),
        ("bench envs --num-envs 0", "--num-envs must be at least 1, got 0"),
        ("bench train --agents lstm recurent_ppo", "did you mean 'recurrent_ppo'"),
        ("bench train --num-envs 8 10", "--num-envs must be multiples of 4, got 10"),
        ("bench act --batch-sizes 0", "--batch-sizes must be at least 1, got 0"),
        ("bench unroll --models lstmm", "did you mean 'lstm'"),
        ("bench unroll --widths 100", "--widths must be multiples of 8, got 100"),
        ("bench scale --episode-steps 15", "--episode-steps must be a multiple of 10, got 15"),
        ("bench profile --cores rnn", "unknown core 'rnn'"),
    ],
)
def test_mistakes_are_told_in_a_line_and_nothing_is_written(
    line: str, told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    printed, shown = capsys.readouterr()
    assert not printed
    assert shown.startswith("error: ")
    assert told in shown
    assert len(shown.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["train", "--help"], ["envs"]], ids=" ".join)
def test_a_reader_that_leaves_early_is_no_error(arguments: list[str]) -> None:
    """An example is `ctrl train --help | head -0`, where the reader ends before anything is written."""
    command = [sys.executable, "-m", "ctrl.experiments", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_a_pipe_of_something_else_that_breaks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """An example is the pipe to a dead worker."""

    def broken(_: object) -> int:
        raise BrokenPipeError

    monkeypatch.setattr("ctrl.experiments.cli.run", broken)
    with pytest.raises(BrokenPipeError):
        main(["envs"])
