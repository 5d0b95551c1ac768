"""Plots can be read: nothing is cut or covered, series differ in grey, and what is drawn is what was given."""

import itertools

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from pipelines.plots.by_place import by_position, dots
from pipelines.plots.density import Density, densities
from pipelines.plots.frontier import Curve, FrontierPanel, frontier
from pipelines.plots.series import Point, Series
from pipelines.plots.style import LOOKS, STYLE, as_data_uri
from pipelines.plots.training import Training, training_curves

POSITIONS = [(f"position:{name}", name) for name in ("0", "1-15", "16-63", "64-255", "256-1023", "1024+")]
LONG = "BatchTopK 16x, k 128, cache llama3.2-3b-instruct-block-masked, lr 0.0004"


def many(number, places, scale=1.0):
    """Series with long labels over places, each with intervals."""
    rng = np.random.default_rng(0)
    return [Series(f"{LONG} {index}", {name: Point(value := scale * rng.uniform(0.1, 0.9), value * 0.9, value * 1.1)
                                       for name, _ in places}, index) for index in range(number)]


def crowded(number):
    """Every plot with a number of series of long names."""
    classes = [(f"class:{name}", f"{name}  (12,345,678)") for name in ("assistant", "default_system", "turn_end")]
    curves = [Curve(f"{LONG} {index}", index, [(16.0 * k, Point(0.7 + 0.01 * k + 0.02 * index, 0.7, 0.9))
                                              for k in (1, 2, 4)], [(17.0, 0.7)]) for index in range(number)]
    lines = [{"tokens": 1e6 * step, "loss": 300.0 / step, "explained_variance": 0.5 + 0.04 * step, "l0": 200.0 / step,
              "held_out_explained_variance": 0.5 if step % 3 == 0 else None, "held_out_l0": None}
             for step in range(1, 10)]
    edges = [edge / 4 for edge in range(-24, 1)]
    return {
        "by_position": by_position(many(number, POSITIONS), many(number, POSITIONS, 50.0), POSITIONS),
        "dots": dots(many(number, classes), classes, "explained variance (share of 1)", zero_line=True),
        "frontier": frontier([FrontierPanel("content tokens", "explained variance (share of 1)", curves)] * 2),
        "densities": densities([Density(f"{LONG} {index}", index, edges, [1 / 24] * 24, 0.01)
                                for index in range(number)]),
        "training": training_curves([Training(f"{LONG} {index}", index, [lines]) for index in range(number)]),
    }


@pytest.fixture(scope="module", params=[1, 3, 8])
def figures(request):
    with mpl.rc_context(STYLE):
        made = crowded(request.param)
        for figure in made.values():
            FigureCanvasAgg(figure).draw()
        yield made


def boxes(figure, texts):
    renderer = figure.canvas.get_renderer()
    return [text.get_window_extent(renderer) for text in texts if text.get_visible() and text.get_text()]


def test_no_text_is_cut_and_the_legend_covers_nothing(figures):
    for name, figure in figures.items():
        whole = figure.bbox
        legend, = figure.legends
        renderer = figure.canvas.get_renderer()
        above = legend.get_window_extent(renderer)
        texts = list(legend.get_texts())
        for axes in figure.axes:
            texts += [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
            texts += [tick.label1 for axis in (axes.xaxis, axes.yaxis) for tick in axis.get_major_ticks()
                      if min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())]
            assert not above.overlaps(axes.get_window_extent(renderer)), name
        for box in boxes(figure, texts):
            assert whole.x0 - 1 <= box.x0, name
            assert box.x1 <= whole.x1 + 1, name
            assert whole.y0 - 1 <= box.y0, name
            assert box.y1 <= whole.y1 + 1, name


def test_labels_of_positions_and_of_legends_do_not_run_into_each_other(figures):
    for axes in figures["by_position"].axes:
        found = boxes(axes.figure, axes.get_xticklabels())
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(found))
    for figure in figures.values():
        found = boxes(figure, figure.legends[0].get_texts())
        assert not any(one.overlaps(other) for one, other in itertools.combinations(found, 2))


def grey(colour):
    red, green, blue = mpl.colors.to_rgb(colour)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def test_series_differ_by_mark_and_line_and_neighbours_in_grey():
    assert len({look["marker"] for look in LOOKS}) == len(LOOKS)
    assert all(abs(grey(one["color"]) - grey(other["color"])) > 0.08 for one, other in itertools.pairwise(LOOKS))
    assert all(grey(look["color"]) < 0.75 for look in LOOKS)  # to be seen on white
    lines = [str(look["linestyle"]) for look in LOOKS]
    assert all(one != other for one, other in itertools.pairwise(lines))


def test_a_frontier_joins_points_by_l0_with_a_bar_for_each_interval():
    curve = Curve("a", 0, [(64.0, Point(0.9, 0.88, 0.91)), (16.0, Point(0.7, 0.6, 0.75))])
    axes, = frontier([FrontierPanel("content", "explained variance", [curve])]).axes
    *bars, line = axes.get_lines()
    assert line.get_xydata().tolist() == [[16, 0.7], [64, 0.9]]
    assert sorted(bar.get_xydata().tolist() for bar in bars) == [[[16, 0.6], [16, 0.75]], [[64, 0.88], [64, 0.91]]]
    assert axes.get_xscale() == "log"


def test_points_of_one_l0_do_not_fill_the_axis():
    curves = [Curve(name, number, [(l0, Point(0.8))]) for number, (name, l0) in enumerate((("a", 38.0), ("b", 38.4)))]
    axes, = frontier([FrontierPanel("content", "explained variance", curves)]).axes
    low, high = axes.get_xlim()
    assert high - low > 0.2 * 38
    assert axes.get_xscale() == "linear"


def test_a_position_far_above_the_rest_makes_the_axis_logarithmic_and_one_that_is_not_defined_is_left_out():
    flat = [Series("a", {name: Point(0.1) for name, _ in POSITIONS[1:]}, 0)]
    sink = [Series("a", {name: Point(5.0 if name == "position:0" else 0.1) for name, _ in POSITIONS}, 0)]
    left, right = by_position(flat, sink, POSITIONS).axes
    assert (left.get_yscale(), right.get_yscale()) == ("linear", "log")
    values = next(line for line in left.get_lines() if line.get_label() == "a").get_ydata()
    assert np.isnan(values[0])
    assert values[1:] == pytest.approx(0.9)  # what is not explained


def test_a_class_that_is_not_explained_at_all_does_not_flatten_the_others():
    series = [Series("a", {"one": Point(-40.0, -50.0, -30.0), "two": Point(0.8, 0.7, 0.9)}, 0)]
    axes, = dots(series, [("one", "one"), ("two", "two"), ("none", "none")], "explained variance", lowest=-0.05).axes
    assert axes.get_xlim()[0] > -0.2
    assert [text.get_text() for text in axes.texts] == ["-40"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["one", "two"]


def test_the_same_data_make_the_same_bytes():
    one, other = ({name: as_data_uri(figure) for name, figure in crowded(3).items()} for _ in range(2))
    assert one == other
