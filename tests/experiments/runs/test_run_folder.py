from __future__ import annotations

from pathlib import Path

import pytest

from ctrl.experiments.errors import UserError
from ctrl.experiments.runs.run_folder import MARKER, open_folder, read_json, slug, write_json


def results(folder: Path) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / MARKER, {})
    (folder / "model.zip").write_text("precious")
    return folder


def test_a_new_or_empty_folder_is_taken(tmp_path: Path) -> None:
    assert open_folder(tmp_path / "a" / "b", overwrite=False, name="x").is_dir()
    assert open_folder(tmp_path / "a" / "b", overwrite=False, name="x") == tmp_path / "a" / "b"


def test_results_are_not_replaced_unless_asked(tmp_path: Path) -> None:
    folder = results(tmp_path / "run")
    with pytest.raises(UserError, match="--overwrite"):
        open_folder(folder, overwrite=False, name="x")
    assert (folder / "model.zip").read_text() == "precious"
    open_folder(folder, overwrite=True, name="x")
    assert list(folder.iterdir()) == []


def test_what_is_no_results_folder_is_spared(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    for path, told in ((tmp_path, "not a results folder"), (tmp_path / "thesis.tex", "is a file")):
        with pytest.raises(UserError, match=told):
            open_folder(path, overwrite=True, name="x")
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_folders_without_a_name_are_numbered(tmp_path: Path) -> None:
    first, second = (open_folder(None, overwrite=False, name="recall-lstm", root=tmp_path) for _ in range(2))
    assert (first.name, second.name) == ("recall-lstm-1", "recall-lstm-2")


def test_slug() -> None:
    assert slug("my_package:ctrl/Recall-v0") == "recall-v0"
    assert slug("CartPole-v1") == "cartpole-v1"


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(("text", "told"), [(None, "does not exist"), ("{", "is not JSON")])
def test_json_that_cannot_be_read_is_named(tmp_path: Path, text: str | None, told: str) -> None:
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=f"a.json {told}"):
        read_json(path)
