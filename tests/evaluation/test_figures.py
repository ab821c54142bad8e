"""What the figures hold, read back from matplotlib's own objects."""

import base64
import warnings
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import PathCollection

from tlx.evaluation import figures
from tlx.evaluation.history import History, smooth
from tlx.evaluation.learning_figures import learning_curves, learning_rates
from tlx.evaluation.style import data_uri, pixels, printable, short, shorten

ODD = ["$a_$", "猫と犬", "<b>&", "\x07bell", "x" * 60, "\udcff"]


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_confusion_matrix_writes_every_count_into_its_cell():
    counts = np.array([[8, 1, 0], [2, 5, 3], [0, 0, 4]])
    axes = figures.confusion_matrix(counts, ["a", "b", "c"]).axes[0]
    cells = {text.get_position(): text.get_text().split("\n") for text in axes.texts}
    assert len(cells) == 9
    for (row, column), count in np.ndenumerate(counts):
        assert cells[column, row] == [str(count), f"{count / counts[row].sum():.0%}"]
    shares = axes.images[0].get_array()
    np.testing.assert_allclose(shares, counts / counts.sum(axis=1, keepdims=True))


def test_of_1000_classes_the_most_confused_are_shown_and_that_is_said():
    counts = np.diag(np.full(1000, 5))
    counts[700, 3] = 9
    counts[41, 997] = 8
    figure = figures.confusion_matrix(counts, [f"class {i}" for i in range(1000)])
    axes = figure.axes[0]
    assert axes.get_title(loc="left") == "The 20 most confused of 1000 classes"
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(names) == 20
    assert {"class 3", "class 41", "class 700", "class 997"} <= set(names)


def test_an_absent_class_is_an_empty_row_without_a_warning():
    figure = figures.confusion_matrix(np.array([[3, 0], [0, 0]]), ["a", "b"])
    assert texts(figure) == ["3\n100%", "0\n0%", "0\n0%", "0\n0%"]


def test_reliability_leaves_out_empty_bins():
    confidence, share = np.array([np.nan, 0.6, 0.9]), np.array([np.nan, 0.5, 1.0])
    axes = figures.reliability(confidence, share, np.array([0, 2, 4])).axes[0]
    (dots,) = (c for c in axes.collections if isinstance(c, PathCollection))
    np.testing.assert_allclose(dots.get_offsets(), [[0.6, 0.5], [0.9, 1.0]])


def test_curves_draw_the_points_they_are_given():
    across, up = np.array([0.0, 0.25, 1.0]), np.array([0.0, 0.75, 1.0])
    axes = figures.curves({"a": (across, up)}, x="x", y="y", chance=True).axes[0]
    np.testing.assert_array_equal(axes.lines[1].get_xydata(), np.stack([across, up], axis=1))
    assert axes.lines[0].get_xydata().tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize("count", [1, 5, 8])
def test_the_legend_of_curves_lies_outside_their_axes(count):
    points = {f"a class's name {i} (0.{i:03d})": (np.eye(2)[0], np.eye(2)[1]) for i in range(count)}
    figure = figures.curves(points, x="x", y="y")
    pixels(figure)  # lays it out
    (legend,) = figure.legends
    box, below = legend.get_window_extent(), figure.axes[0].get_tightbbox()
    assert box.y1 <= below.y0
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert len(legend.get_texts()) == count


def test_class_distribution_has_a_bar_per_class_and_split():
    counts = {"train": np.array([4, 9]), "test": np.array([1, 2])}
    axes = figures.class_distribution(counts, ["a", "b"]).axes[0]
    bars = [(bar.get_x(), bar.get_width()) for bar in axes.patches]
    assert bars == [(0, 9), (0, 4), (9, 2), (4, 1)]  # the larger class first, tests behind train
    assert texts(figures.class_distribution(counts, ["a", "b"])) == ["11", "5"]


def test_the_ring_says_shares_beside_it():
    names = ["a", "some class of long name", "none", "c"]
    figure = figures.class_shares(np.array([5, 14, 0, 1]), names)
    pixels(figure)  # lays it out
    (legend,) = figure.legends
    told = [text.get_text() for text in legend.get_texts()]
    assert told == ["some cla…ng name  70.0%", "a  25.0%", "c  5.0%", "none  0.0%"]
    assert legend.get_window_extent().x1 <= figure.bbox.x1
    assert [text for text in texts(figure) if text] == []  # none that could overlap


def test_the_embedding_marks_the_wrong_ones_with_a_cross():
    points = np.arange(10.0).reshape(5, 2)
    right = np.array([True, False, True, True, False])
    labels = np.array([0, 0, 1, 1, 1])
    axes = figures.embedding(points, labels, ["a", "b"], explained=(0.5, 0.1), right=right).axes[0]
    drawn = [c.get_offsets().data for c in axes.collections]
    found = sorted(tuple(point) for offsets in drawn for point in offsets)
    assert found == sorted(map(tuple, points))
    assert axes.get_xlabel() == "first component (50% of the variance)"


def test_smoothing_is_the_exponential_average_with_a_factor_of_08():
    values = np.array([1.0, 0.0, 2.0, 1.0])
    expected = [1.0, 0.8, 0.8 * 0.8 + 0.2 * 2, 0.8 * (0.8 * 0.8 + 0.2 * 2) + 0.2]
    np.testing.assert_allclose(smooth(values), expected)
    assert values.tolist() == [1, 0, 2, 1]


def history(values: Sequence[float] = (3.0, 2.0, 1.0)) -> History:
    ends, values = np.array([10, 20, 25, *range(35, 600, 10)])[: len(values)], np.array(values)
    series = {f"{split}/{m}": (ends, values) for split in ("train", "val") for m in ("loss",)}
    series["lr/head"] = (np.array([5, 10, 25]), np.array([1e-3, 1e-4, 0.0]))
    return History(series, (("head", 0), ("top", 20)))


def test_learning_curves_are_what_was_measured_with_the_stages_marked():
    axes = learning_curves(history(), "loss").axes[0]
    train, val, mark = axes.lines
    assert train.get_xdata().tolist() == val.get_xdata().tolist() == [1, 2, 3]
    assert train.get_ydata().tolist() == [3, 2, 1]
    assert [text.get_text() for text in axes.texts] == ["head", "top"]
    assert list(mark.get_xdata()) == [2, 2]  # step 20 is the end of epoch 2


def test_long_curves_are_smoothed_within_each_stage():
    values = [5.0, 4.0, *np.linspace(3, 1, 30)]
    axes = learning_curves(history(values), "loss").axes[0]
    raw, smoothed = axes.lines[:2]
    assert raw.get_ydata().tolist() == values
    np.testing.assert_allclose(smoothed.get_ydata()[:2], [5, 4.8])
    np.testing.assert_allclose(smoothed.get_ydata()[2:], smooth(np.array(values[2:])))


def test_learning_rates_are_on_the_axis_of_epochs_and_a_logarithmic_one():
    axes = learning_rates(history()).axes[0]
    assert axes.get_yscale() == "log"
    assert axes.lines[0].get_xdata().tolist() == [0.5, 1, 3]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [1e-3, 1e-4, np.nan])


@pytest.mark.parametrize("draw", [data_uri, pixels])
def test_names_in_any_script_are_drawn_without_a_warning(draw):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(figures.confusion_matrix(np.eye(6, dtype=int), ODD))
        draw(figures.class_shares(np.arange(1, 7), ODD))
        draw(figures.image_grid([np.zeros((4, 4, 3), np.uint8)] * 6, ODD))


def test_a_figure_becomes_svg_with_its_text_or_pixels_where_that_is_large():
    few = data_uri(figures.confusion_matrix(np.eye(2, dtype=int), ["猫", "dog"]))
    kind, _, data = few.partition(",")
    assert kind == "data:image/svg+xml;base64"
    svg = base64.b64decode(data).decode()
    assert "猫" in svg
    assert "system-ui" in svg
    many = np.random.default_rng(0).random((5000, 2))
    labels, right = np.zeros(5000, dtype=np.int64), np.ones(5000, dtype=bool)
    large = figures.embedding(many, labels, ["a"], explained=(1, 0), right=right)
    assert data_uri(large).startswith("data:image/png;base64,")
    assert pixels(large).shape[2] == 3


def test_the_user_s_matplotlib_settings_neither_matter_nor_change():
    before = mpl.rcParams["font.size"]
    with mpl.rc_context({"font.size": 31, "text.usetex": True}):
        figure = figures.confusion_matrix(np.eye(2, dtype=int), ["a", "b"])
        assert figure.axes[0].get_xlabel() == "predicted"
        assert figure.axes[0].xaxis.label.get_fontsize() < 12
        assert mpl.rcParams["font.size"] == 31
    assert mpl.rcParams["font.size"] == before


def test_printable_and_short():
    assert printable("a\x07b\udcffc") == "a\ufffdb\ufffdc"
    assert short("abcdefgh", 5) == "ab…gh"
    assert short("abcde", 5) == "abcde"


def test_names_shortened_together_stay_distinct():
    flowers = [f"flower_{i:03d} some petal" for i in range(102)]
    assert shorten(flowers, 14)[:2] == ["flower_000…tal", "flower_001…tal"]
    inside = [f"the same beginning {i} and then the same long end" for i in range(3)]
    both = [*inside, *(f"other {name}" for name in inside), "short"]
    assert shorten(both, 14)[2:4] == ["the same beginning 2 and t…", "other the same beginning 0…"]
    for names in (flowers, both):
        assert len(set(shorten(names, 14))) == len(names)
    assert shorten(["abcdefgh", "abcd", "abcdefgh"], 5) == ["ab…gh", "abcd", "ab…gh"]
