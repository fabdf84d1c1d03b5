import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lmlab.figures import images, style, table


def drawn(figure, series):
    found = [(row[5], row[6], row[7]) for row in table.rows(figure) if row[2] == series]
    side = max(i for i, _, _ in found) + 1
    return np.array([value for _, _, value in found]).reshape(side, -1)


def test_rows_hold_each_image_under_its_name(tmp_path):
    rng = np.random.default_rng(0)
    original, copy = rng.random((4, 5, 6)).astype(np.float32), rng.random((3, 5, 6, 1))
    figure = images.rows({"original": jnp.asarray(original), "copy": copy})
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["original", "copy"]
    assert len(axes.images) == 7
    assert np.array_equal(drawn(figure, "original 3"), original[3])
    assert np.array_equal(drawn(figure, "copy 0"), copy[0, ..., 0])
    tops = [image.get_extent()[3] for image in axes.images]
    assert len(set(tops[:4])) == 1 and tops[0] < tops[4]  # the second row lies under the first
    style.save(figure, tmp_path, "rows")


def test_grid_runs_in_reading_order():
    figure = images.grid(np.arange(7 * 2 * 2, dtype=np.uint8).reshape(7, 2, 2))
    places = [(image.get_extent()[3], image.get_extent()[0]) for image in figure.axes[0].images]
    assert places == sorted(places) and len({top for top, _ in places}) == 3
    assert np.array_equal(drawn(figure, "6"), [[24, 25], [26, 27]])


def test_colour_images_are_drawn_in_colour(tmp_path):
    red = np.zeros((1, 8, 8, 3), np.float32)
    red[..., 0] = 1
    png, *_ = style.save(images.grid(red), tmp_path, "red")
    pixels = np.asarray(Image.open(png).convert("RGB"))
    assert (pixels == [255, 0, 0]).all(-1).mean() > 0.5


@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_pixel_for_pixel(tmp_path, channels):
    values = np.random.default_rng(0).integers(0, 256, (3, 4, 5, channels), dtype=np.uint8)
    images.write_png(values, tmp_path / "new" / "a.png", columns=2)
    images.write_png(values / 255, tmp_path / "b.png", columns=2)
    sheet = np.asarray(Image.open(tmp_path / "new" / "a.png")).reshape(10, 12, channels)
    assert np.array_equal(sheet[:4, :5], values[0]) and np.array_equal(sheet[:4, 7:], values[1])
    assert np.array_equal(sheet[6:, :5], values[2]) and (sheet[6:, 7:] == 255).all()
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "new" / "a.png").read_bytes()


def test_a_little_outside_is_cut_and_much_is_refused():
    figure = images.grid(np.array([[[-0.1, 1.1]]]))
    assert drawn(figure, "0").tolist() == [[0, 1]]
    with pytest.raises(ValueError, match="floats from 0 to 1; received -1 to 1"):
        images.grid(np.array([[[-1.0, 1.0]]]))
    with pytest.raises(ValueError, match=r"received \(2, 2\)"):
        images.grid(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="received none"):
        images.rows({})
