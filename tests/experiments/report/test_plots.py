from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

from ctrl.experiments.report.plots import COLOURS, HELD_OUT, TRAINING, colour_of, learning_curves, resample, save_figure
from ctrl.experiments.report.summary import Point

NAN = float("nan")


def curve(values: list[float], success: bool = True, step: int = 1000) -> list[Point]:
    return [Point((i + 1) * step, 10 * v, v if success else NAN, 8, 500.0) for i, v in enumerate(values)]


CURVES = {"compressive": [curve([0.1, 0.5, 0.9]), curve([0.3, 0.7, 0.9])], "lstm": [curve([0.2, 0.2, 0.2])]}


def test_axes_say_what_is_shown() -> None:
    (axes,) = learning_curves(CURVES, title="ctrl/Recall-v0 (length=48)").axes
    assert axes.get_xlabel() == "environment steps"
    assert axes.get_ylabel() == "success in training (mean and range of 2 seeds)"
    assert axes.get_title(loc="left") == "ctrl/Recall-v0 (length=48)"
    assert axes.get_xlim()[0] == 0
    assert axes.get_ylim() == (-0.02, 1.02)


def test_return_is_shown_where_there_is_no_success() -> None:
    (axes,) = learning_curves({"gru": [curve([0.1, 0.2], success=False)]}, title="t").axes
    assert axes.get_ylabel() == "return in training"
    (line,) = axes.lines
    assert np.asarray(line.get_ydata())[-1] == pytest.approx(2.0)


def test_each_core_has_its_colour_a_line_and_a_band() -> None:
    (axes,) = learning_curves(CURVES, title="t", references={"best without memory": 0.25}).axes
    compressive, lstm, reference = axes.lines
    assert to_hex(compressive.get_color()).upper() == COLOURS["compressive"]
    assert to_hex(lstm.get_color()).upper() == COLOURS["lstm"]
    assert reference.get_linestyle() == "--"
    assert set(np.asarray(reference.get_ydata())) == {0.25}
    assert len(axes.collections) == 1  # one seed has no band
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["compressive", "lstm"]


def test_scores_of_others_are_labelled_lines() -> None:
    (axes,) = learning_curves(CURVES, title="t", references={"best without memory": 0.25, "perfect": 1.0}).axes
    assert [set(np.asarray(line.get_ydata())) for line in axes.lines[2:]] == [{0.25}, {1.0}]
    assert [(label.get_text(), label.get_position()[1]) for label in axes.texts] == [
        ("best without\nmemory 25%", 0.25),
        ("perfect 100%", 1.0),
    ]
    returns = {"gru": [curve([0.1, 0.2], success=False)]}
    (axes,) = learning_curves(returns, title="t", references={"perfect": 51.1}).axes
    assert [label.get_text() for label in axes.texts] == ["perfect 51.10"]


def test_held_out_episodes_are_dots_and_the_legend_says_what_is_sampled() -> None:
    held_out = {"compressive": [curve([0.4, 0.8]), curve([0.6])], "lstm": [[]]}  # one seed is not yet so far
    (axes,) = learning_curves(CURVES, title="t", held_out=held_out).axes
    dots = axes.lines[2]
    assert to_hex(dots.get_color()).upper() == COLOURS["compressive"]
    assert (dots.get_marker(), dots.get_linestyle()) == ("o", "None")
    assert np.asarray(dots.get_xdata()) == pytest.approx([1000, 2000])
    assert np.asarray(dots.get_ydata()) == pytest.approx([0.5, 0.8])
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["compressive", "lstm", TRAINING, HELD_OUT]
    assert "sampled" in TRAINING and "likeliest" in HELD_OUT
    assert axes.get_ylabel() == "success (mean and range of 2 seeds)"


def test_nothing_of_a_picture_is_cut_off(tmp_path: Path) -> None:
    """The labels beside the axes and the legend below them are inside the figure."""
    held_out = {"compressive": [curve([0.4, 0.8])]}
    scores = {"best without memory": 0.25, "perfect": 1.0}
    figure = learning_curves(CURVES, title="t", held_out=held_out, references=scores)
    save_figure(figure, tmp_path / "a.png")
    inside, (axes,) = figure.bbox, figure.axes
    legend = axes.get_legend()
    assert legend is not None
    for part in (*axes.texts, legend):
        box = part.get_window_extent()
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1


def test_the_line_is_the_mean_and_the_band_the_range() -> None:
    (axes,) = learning_curves({"lstm": [curve([0.1, 0.1]), curve([0.5, 0.5])]}, title="t").axes
    assert np.asarray(axes.lines[0].get_ydata()) == pytest.approx(0.3)
    heights = axes.collections[0].get_paths()[0].vertices
    assert np.asarray(heights)[:, 1].min() == pytest.approx(0.1)
    assert np.asarray(heights)[:, 1].max() == pytest.approx(0.5)


def test_a_curve_is_not_extended_beyond_what_was_seen() -> None:
    grid = np.array([0.0, 1000.0, 1500.0, 2000.0, 3000.0])
    values = resample(curve([0.0, 1.0]), "success", grid)
    assert np.isnan(values[[0, -1]]).all()
    assert values[1:-1] == pytest.approx([0.0, 0.5, 1.0])


def test_updates_in_which_no_episode_ended_are_left_out() -> None:
    points = [Point(1000, 1.0, 0.5, 4, 9.0), Point(2000, NAN, NAN, 0, 9.0), Point(3000, 3.0, 0.5, 4, 9.0)]
    assert resample(points, "return", np.array([2000.0])) == pytest.approx([2.0])


def test_smoothing_weighs_updates_by_their_episodes() -> None:
    points = [Point(100_000 + i, v, NAN, n, 9.0) for i, (v, n) in enumerate([(0.0, 1), (1.0, 3)])]
    assert resample(points, "return", np.array([100_000.0])) == pytest.approx([0.75])


def test_colours_are_stable() -> None:
    assert colour_of("lstm") == COLOURS["lstm"]
    assert colour_of("my_core") == colour_of("my_core")
    assert len(set(COLOURS.values())) == len(COLOURS)


@pytest.mark.parametrize("curves", [{}, {"lstm": []}, {"lstm": [[]]}, {"lstm": [[Point(5, NAN, NAN, 0, 1.0)]]}])
def test_nothing_to_show_is_an_empty_picture(curves: dict[str, list[list[Point]]], tmp_path: Path) -> None:
    figure = learning_curves(curves, title="t")
    assert figure.axes[0].lines[:] == []
    save_figure(figure, tmp_path / "empty.png")


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    save_figure(learning_curves(CURVES, title="t"), tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(data) > 10_000
