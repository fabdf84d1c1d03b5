import csv

import numpy as np
import pytest

from lmlab.figures import style, table


def read(rows, kind):
    return [row for row in rows if row[1] == kind]


def test_lines_points_and_references():
    figure, axes = style.new()
    axes.set_title("panel")
    axes.plot([1, 2], [3.0, 4.0], label="a")
    axes.plot([1, 2], [5.0, 6.0])
    axes.axhline(0.5, label="floor")
    axes.axvline(7.0, label="wall")
    axes.scatter([1.0, 2.0], [8.0, 9.0], c=[0.1, 0.2], label="dots")
    rows = table.rows(figure)
    assert read(rows, "line") == [
        ("panel", "line", "a", 1, 3.0, "", "", ""),
        ("panel", "line", "a", 2, 4.0, "", "", ""),
        ("panel", "line", "1", 1, 5.0, "", "", ""),
        ("panel", "line", "1", 2, 6.0, "", "", ""),
    ]
    assert read(rows, "reference") == [
        ("panel", "reference", "floor", "", 0.5, "", "", ""),
        ("panel", "reference", "wall", 7.0, "", "", "", ""),
    ]
    assert read(rows, "point") == [
        ("panel", "point", "dots", 1.0, 8.0, "", "", 0.1),
        ("panel", "point", "dots", 2.0, 9.0, "", "", 0.2),
    ]


@pytest.mark.parametrize("sideways", [False, True])
def test_bars_with_names_and_errors(sideways):
    figure, axes = style.new()
    if sideways:
        axes.barh(["gru", "lstm"], [1.5, 2.5], xerr=[0.1, 0.2], label="bits")
    else:
        axes.bar(["gru", "lstm"], [1.5, 2.5], yerr=[0.1, 0.2], label="bits")
    rows = table.rows(figure)
    order = slice(3, 5) if not sideways else slice(4, 2, -1)
    assert [row[order] for row in read(rows, "bar")] == [("gru", 1.5), ("lstm", 2.5)]
    assert {row[2] for row in read(rows, "bar")} == {"bits"}
    assert np.allclose([row[order][1] for row in read(rows, "error low")], [1.4, 2.3])
    assert np.allclose([row[order][1] for row in read(rows, "error high")], [1.6, 2.7])
    assert not read(rows, "line")  # caps and stems are no series of their own


def test_bars_placed_by_number_and_named_by_ticks():
    figure, axes = style.new()
    axes.bar([0, 1], [1.0, 2.0])
    assert [row[3] for row in table.rows(figure)] == [0, 1]
    axes.set_xticks([0, 1], ["a", "b"])
    assert [row[3] for row in table.rows(figure)] == ["a", "b"]


def test_bands():
    figure, axes = style.new()
    axes.fill_between([0.0, 1.0, 2.0], [1.0, 2.0, 3.0], [4.0, 5.0, 7.0], label="_a")
    rows = table.rows(figure)
    assert [row[2:5] for row in read(rows, "band low")] == [("a", 0.0, 1.0), ("a", 1.0, 2.0), ("a", 2.0, 3.0)]
    assert [row[4] for row in read(rows, "band high")] == [4.0, 5.0, 7.0]


def test_images_and_meshes_but_not_colour_bars():
    figure, axes = style.new(1, 3)
    values = np.array([[0.1, np.nan], [0.3, 0.4]], np.float32)
    image = axes[0, 0].imshow(values)
    axes[0, 1].pcolormesh(values)
    axes[0, 2].imshow(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    style.colorbar(figure, image, axes[0, 0], "weight")
    rows = table.rows(figure)
    assert {row[0] for row in rows} == {"axes 0", "axes 1", "axes 2"}
    for name, kind in (("axes 0", "image"), ("axes 1", "mesh")):
        found = [row[5:] for row in read(rows, kind) if row[0] == name]
        assert [(r, c, str(v)) for r, c, v in found] == [
            (0, 0, "0.1"),
            (0, 1, "nan"),
            (1, 0, "0.3"),
            (1, 1, "0.4"),
        ]
    blue = [row[7] for row in rows if row[2] == "0 blue"]
    assert blue == [2, 5, 8, 11]


def test_numbers_survive_the_file(tmp_path):
    values = np.random.default_rng(0).normal(size=50)
    figure, axes = style.new()
    axes.plot(values)
    table.write(figure, tmp_path / "x.csv")
    rows = list(csv.DictReader((tmp_path / "x.csv").read_text().splitlines()))
    assert [float(row["y"]) for row in rows] == list(values)


def test_an_artist_that_hides_its_data_is_refused():
    figure, axes = style.new()
    axes.hexbin([0, 1], [0, 1])
    with pytest.raises(ValueError, match="PolyCollection"):
        table.rows(figure)
