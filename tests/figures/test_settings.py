import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import LogNorm

from lmlab.figures import settings, style, table

NAN = float("nan")


def read(figure):
    return pd.DataFrame(table.rows(figure), columns=table.COLUMNS)


def labels(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def words(axes):
    return [text.get_text() for text in axes.texts]


def test_along_an_axis_means_deviations_and_every_run(tmp_path):
    x, y = [0.1, 0.001, 0.1, 0.001, 0.01], [1.0, 4.0, 2.0, 5.0, 3.0]
    figure = settings.along(x, y, "rate", "loss")
    rows, by = read(figure), pd.Series(y).groupby(x)
    line = rows[(rows["kind"] == "line") & (rows["series"] == "mean")]
    assert list(line["x"]) == [0.001, 0.01, 0.1]
    np.testing.assert_allclose(line["y"].astype(float), by.mean())
    low, high = (rows[rows["kind"] == f"error {end}"]["y"].astype(float) for end in ("low", "high"))
    np.testing.assert_allclose((high.to_numpy() - low.to_numpy()) / 2, by.std().fillna(0), atol=1e-12)
    points = rows[rows["kind"] == "point"]
    assert sorted(zip(points["x"], points["y"], strict=True)) == sorted(zip(x, y, strict=True))
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale(), axes.get_yscale()) == (
        "rate",
        "loss",
        "log",
        "linear",
    )
    assert labels(axes.xaxis) == ["0.001", "0.01", "0.1"]
    style.save(figure, tmp_path, "along")


def test_one_run_a_setting_has_no_bars_and_names_stand_side_by_side():
    figure = settings.along(["gru", "lstm", "gpt"], [3.0, 2.0, 1.0], "variant", "loss")
    rows = read(figure)
    assert set(rows["kind"]) == {"line"} and list(rows["x"]) == [0, 1, 2]
    axes = figure.axes[0]
    assert labels(axes.xaxis) == ["gru", "lstm", "gpt"]
    assert axes.lines[0].get_linestyle() == "None", "no line between names"


def test_runs_that_diverged_are_named_and_count_in_no_mean():
    figure = settings.along([1, 1, 2, 3], [1.0, NAN, NAN, 2.0], "x", "loss")
    rows = read(figure)
    line = rows[(rows["kind"] == "line") & (rows["series"] == "mean")]
    assert list(line["x"]) == [1, 3] and list(line["y"]) == [1.0, 2.0]
    assert words(figure.axes[0]) == ["1 of 2 diverged", "diverged"]
    low, high = settings.along([0.1, 0.1, 1e30], [1.0, 2.0, NAN], "x", "loss").axes[0].get_xlim()
    assert low < 0.1 and high > 1e30, "those that diverged are within the axes"


@pytest.mark.parametrize(
    ("values", "scale"),
    [((1, 5, 9.9), "linear"), ((1, 10), "log"), ((0, 10), "linear"), ((-1, 10), "linear")],
)
def test_a_decade_above_nought_is_logarithmic(values, scale):
    figure = settings.along(values, values, "x", "y")
    assert (figure.axes[0].get_xscale(), figure.axes[0].get_yscale()) == (scale, scale)


def test_over_two_axes_cells_are_means(tmp_path):
    x, y, values = [0.1, 0.1, 0.01, 0.01, 0.1], ["b", "b", "b", "a", "a"], [1.0, 2.0, 3.0, NAN, 30.0]
    figure = settings.over(x, y, values, "rate", "name", "loss")
    axes = figure.axes[0]
    drawn = read(figure).pivot(index="row", columns="column", values="value").to_numpy(float)
    np.testing.assert_allclose(drawn, [[3.0, 1.5], [NAN, 30.0]])
    assert (labels(axes.xaxis), labels(axes.yaxis)) == (["0.01", "0.1"], ["b", "a"])
    assert words(axes) == ["3.000", "1.500\n± 0.71", "diverged", "30.00"]
    assert isinstance(axes.images[0].norm, LogNorm), "the values span a decade"
    framed = {(patch.get_x(), patch.get_y()) for patch in axes.patches}
    assert framed == {(0.54, -0.46)}, "the lowest"
    highest = settings.over(x, y, values, "rate", "name", "loss", max).axes[0]
    assert {(patch.get_x(), patch.get_y()) for patch in highest.patches} == {(0.54, 0.54)}
    unsafe = settings.over([*x, 0.1], [*y, "b"], [*values, NAN], "rate", "name", "loss").axes[0]
    assert words(unsafe)[1] == "1.500\n± 0.71\n1 diverged"
    assert {(patch.get_x(), patch.get_y()) for patch in unsafe.patches} == {(-0.46, -0.46)}, "not the lowest"
    style.save(figure, tmp_path, "over")


def test_numbers_can_be_read_on_every_colour():
    values = np.linspace(0.5, 1.0, 20)
    figure = settings.over(
        [n % 5 for n in range(20)], [n // 5 for n in range(20)], list(values), "a", "b", "loss"
    )
    axes = figure.axes[0]
    for text, value in zip(axes.texts, values, strict=True):
        red, green, blue, _ = axes.images[0].to_rgba(value)
        light = 0.3 * red + 0.59 * green + 0.11 * blue
        assert abs(light - (text.get_color() == "white")) > 0.4


def test_a_large_grid_goes_without_numbers(tmp_path):
    x, y = [n // 20 for n in range(600)], [n % 20 for n in range(600)]
    figure = settings.over(x, y, [1.0] * 600, "a", "b", "loss")
    assert words(figure.axes[0]) == [] and figure.get_figwidth() <= style.PAGE
    style.save(figure, tmp_path, "large")


def test_a_random_search_is_points_where_they_lie(tmp_path):
    rng = np.random.default_rng(0)
    x, y, values = 10 ** rng.uniform(-4, -1, 12), rng.integers(1, 100, 12), rng.uniform(1, 2, 12)
    values[3] = NAN
    figure = settings.over(list(x), [int(n) for n in y], list(values), "rate", "width", "loss")
    axes, rows = figure.axes[0], read(figure)
    points = rows[(rows["kind"] == "point") & (rows["series"] == "mean")]
    kept = np.isfinite(values)
    ours = sorted(zip(points["x"], points["y"], points["value"], strict=True))
    np.testing.assert_allclose(ours, sorted(zip(x[kept], y[kept], values[kept], strict=True)))
    lost = rows[rows["series"] == "diverged"]
    assert (lost["x"].item(), lost["y"].item()) == (x[3], y[3])
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    style.save(figure, tmp_path, "points")


def test_all_diverged_is_drawn_too(tmp_path):
    for number, figure in enumerate(
        [
            settings.along([1, 2], [NAN, NAN], "x", "loss"),
            settings.over([1, 2], [1, 1], [NAN, NAN], "x", "y", "loss"),
        ]
    ):
        assert words(figure.axes[0]) == ["diverged", "diverged"]
        style.save(figure, tmp_path, f"{number}")


def test_numbers_that_would_run_into_one_another_are_not_all_written():
    figure = settings.along([256, 283, 512, 2048, 8192], [1.0, 2.0, 3.0, 4.0, 5.0], "vocabulary", "bits")
    axes = figure.axes[0]

    assert [text.get_text() for text in axes.get_xticklabels()] == ["256", "512", "2048", "8192"]
    assert len(axes.lines[0].get_xdata()) == 5
