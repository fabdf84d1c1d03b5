"""Scenes read back from their pixels alone; a folder of images with captions, whole and broken."""

import itertools
import re

import numpy as np
import pytest
from PIL import Image

from lmlab.data import captions, images, scenes
from lmlab.data.captions import Captions
from lmlab.data.scenes import Scenes
from lmlab.experiment import Assets

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
PARTS = ("train", "validation", "test")


def made(count=400, **options):
    return Scenes("digits", Assets(), canvas=36, count=count, **options)


def boxes_of(arrays, i):
    return [box for box in arrays["boxes"][i].tolist() if any(box)]


# -- scenes ------------------------------------------------------------------------------------------


def test_boxes_bound_the_ink():
    arrays = made().arrays("train")
    assert arrays["image"].shape == (400, 36, 36) and arrays["image"].dtype == np.uint8
    counts = []
    for i, image in enumerate(arrays["image"]):
        rest = image.copy()
        for y0, x0, y1, x1 in boxes_of(arrays, i):
            inside = image[y0:y1, x0:x1] > 0
            assert inside[[0, -1]].any(1).all() and inside[:, [0, -1]].any(0).all(), "each side touches ink"
            rest[y0:y1, x0:x1] = 0
        assert not rest.any(), "no ink is outside"
        counts.append(len(boxes_of(arrays, i)))
    assert set(counts) == {1, 2} and 0.65 < np.mean(np.array(counts) == 2) < 0.85


def read_back(image, boxes, digits):
    """The sentence of a picture, by the boxes' places and by looking each digit up among all there are."""
    found = []
    for y0, x0, y1, x1 in boxes:
        ink = image[y0:y1, x0:x1]
        small = y1 - y0 <= 8
        key = (ink if small else ink[::2, ::2]).tobytes()
        if not small:
            np.testing.assert_array_equal(ink, ink[::2, ::2].repeat(2, 0).repeat(2, 1))
        word = DIGITS[digits[key]]
        phrase = ["small", word] if small else [word]
        found.append(" ".join(["an" if phrase[0][0] in "aeiou" and word != "one" else "a", *phrase]))
    if len(found) == 1:
        return found[0]
    (a0, a1, a2, a3), (b0, b1, b2, b3) = boxes
    columns = set(range(a1, a3)) & set(range(b1, b3))
    rows = set(range(a0, a2)) & set(range(b0, b2))
    assert bool(columns) != bool(rows), "apart along one axis, and along one alone"
    assert a3 + 2 <= b1 if rows else a2 + 2 <= b0, "the left or upper one is named first"
    shared, least = (rows, min(a2 - a0, b2 - b0)) if rows else (columns, min(a3 - a1, b3 - b1))
    assert 2 * len(shared) >= least
    return f"{found[0]} {'left of' if rows else 'above'} {found[1]}"


def inked_digits(part):
    """{bytes of a digit's ink: its label}."""
    data, found = images.digits(part), {}
    for image, label in zip(data["image"], data["label"], strict=True):
        columns = np.flatnonzero(image.any(0))
        rows = np.flatnonzero(image.any(1))
        found[image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].tobytes()] = int(label)
    return found


@pytest.mark.parametrize("part", PARTS)
def test_captions_say_what_the_picture_shows(part):
    data, digits = made(800), inked_digits(part)
    arrays, (pictures, references) = data.arrays(part), data.references(part)
    np.testing.assert_array_equal(pictures, arrays["image"])
    assert len(pictures) == (800 if part == "train" else 80)
    for i, (image, (caption,)) in enumerate(zip(pictures, references, strict=True)):
        assert caption == read_back(image, boxes_of(arrays, i), digits)
        ids = arrays["tokens"][i]
        behind = " ".join(["<pad>"] * (8 - len(caption.split())))
        assert data.tokenizer.decode(ids) == f"<start> {caption}\n{behind}"
    if part == "train":
        said = " ".join(caption for (caption,) in references)
        assert all(word in said for word in scenes.WORDS) and "an eight" in said and "a small eight" in said


def test_named_words_are_those_of_the_boxes():
    data, digits = made(200), inked_digits("train")
    arrays = data.arrays("train")
    for i in range(200):
        boxes = boxes_of(arrays, i)
        assert (arrays["named"][i, len(boxes) :] == 0).all()
        for box, place in zip(boxes, arrays["named"][i], strict=False):
            word = data.tokenizer.decode(arrays["tokens"][i, place : place + 1])
            assert read_back(arrays["image"][i], [box], digits).split()[-1] == word


def test_parts_share_no_digit(monkeypatch):
    """Each part's digits are given a grey of their own, which is then found in its scenes and nowhere else."""
    greys = {"train": 100, "validation": 150, "test": 200}

    def parts(name, tfds_dir):
        return lambda part: {
            **images.digits(part),
            "image": (images.digits(part)["image"] > 0) * np.uint8(greys[part]),
        }

    monkeypatch.setattr(images, "parts", parts)
    data = made(100)
    for part, grey in greys.items():
        assert set(np.unique(data.arrays(part)["image"])) == {0, grey}


def test_a_scene_follows_from_seed_part_and_number():
    few, many = made(50).arrays("train"), made(90).arrays("train")
    for name, values in few.items():
        np.testing.assert_array_equal(values, many[name][:50])
    np.testing.assert_array_equal(made().scene("test", 7).image, made().arrays("test")["image"][7])
    assert (few["image"] != made(50, seed=1).arrays("train")["image"]).any((1, 2)).mean() > 0.9
    validation, test = (made(400).arrays(part)["named"] for part in ("validation", "test"))
    assert (validation != test).any(), "parts differ in more than their digits"
    assert len(np.unique(many["image"], axis=0)) == 90


def test_places_spread_over_the_canvas():
    arrays = made(800).arrays("train")
    assert ((arrays["image"] > 0).mean(0) > 0).mean() > 0.95


def test_the_tokenizer_is_the_runs(tmp_path):
    assets = Assets()
    tokenizer = Scenes("digits", assets, canvas=36).tokenizer
    assets.save(tmp_path)
    kept = Scenes("digits", Assets(tmp_path), canvas=36).tokenizer
    assert kept.to_json() == tokenizer.to_json() and kept.specials[0] == "<pad>"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "fashion_mnist"}, "scenes are made of mnist or digits, received 'fashion_mnist'"),
        (
            {"name": "digits", "canvas": 33},
            "canvas must be at least 34 for two digits of digits, received 33",
        ),
        ({"name": "mnist", "canvas": 41}, "canvas must be at least 42 for two digits of mnist, received 41"),
        ({"name": "digits", "count": 9}, "count must be at least 10, received 9"),
    ],
)
def test_impossible_scenes_are_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        Scenes(assets=Assets(), **options)


def test_mnist(data_folder):
    data = Scenes("mnist", Assets(), str(data_folder / "tfds"), canvas=42, count=1000)
    for part in ("validation", "test"):
        arrays = data.arrays(part)
        for i, (caption,) in enumerate(data.references(part)[1]):
            sizes = [max(y1 - y0, x1 - x0) for y0, x0, y1, x1 in boxes_of(arrays, i)]
            small = ["small" in half for half in re.split("above|left of", caption)]
            assert [size <= 11 for size in sizes] == small and all(size <= 11 or size >= 19 for size in sizes)


# -- a folder ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """20 images, each of one grey, with one caption or two."""
    lines = ["image\tcaption"]
    for i in range(20):
        Image.new("RGB", (10 + i, 30), (10 * i,) * 3).save(tmp_path / f"{i}.png")
        lines += [f"{i}.png\tThis is {i}."] + [f"{i}.png\tIt's number {i}"] * (i % 2)
    (tmp_path / "captions.tsv").write_text("\n".join(lines) + "\n\n")
    return tmp_path


def opened(folder, **options):
    return Captions(str(folder), Assets(), (6, 8), **options)


def test_captions_go_with_their_images_and_no_image_is_in_two_parts(folder):
    data = opened(folder)
    assert [len(data.parts[part]) for part in PARTS] == [16, 2, 2]
    assert (
        sorted(itertools.chain(*data.parts.values())) == sorted(f"{i}.png" for i in range(20))
        and not data.dropped
    )
    for part in PARTS:
        pictures, references = data.references(part)
        for name, picture, told in zip(data.parts[part], pictures, references, strict=True):
            i = int(name.split(".")[0])
            assert picture.shape == (6, 8) and picture.dtype == np.uint8 and (picture == 10 * i).all()
            assert told == [f"this is {i} ."] + [f"it's number {i}"] * (i % 2)
        arrays = data.arrays(part)
        assert len(arrays["image"]) == len(arrays["tokens"]) == sum(map(len, references))
    train = data.arrays("train")
    for image, ids in zip(train["image"], train["tokens"], strict=True):
        said = data.tokenizer.decode(ids[1:][ids[1:] > 0])
        assert said in (f"this is {image[0, 0] // 10} .\n", f"it's number {image[0, 0] // 10}\n")
    assert opened(folder, split_seed=1).parts != data.parts
    assert opened(folder).parts == data.parts


def test_rows(folder):
    data = opened(folder, length=3)
    ids = captions.rows(data.tokenizer, ["this is .", "is", "this is this is", "nothing"], 3)
    assert [data.tokenizer.decode(row) for row in ids] == [
        "<start> this is .\n",
        "<start> is\n<pad> <pad>",
        "<start> this is this is",
        "<start> <unk>\n<pad> <pad>",
    ]
    assert (data.arrays("train")["tokens"] != 0).sum(1).max() == 5


def test_words_of_a_caption():
    assert captions.words("A dog, it's well-fed:  RUNNING!") == "a dog , it's well-fed : running !"
    assert captions.words("Un élève   à l’école") == "un élève à l’école" and captions.words(" ") == ""


def test_commas_in_quotes_and_turned_photographs(folder):
    (folder / "captions.tsv").unlink()
    photo = Image.new("L", (40, 20))
    photo.paste(255, (0, 0, 20, 20))  # white to the left; turned by 90 degrees it is above
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(folder / "0.jpg", exif=exif)
    lines = ["image,caption", '0.jpg,"A dog, ""running"""', *(f"{i}.png,number {i}" for i in range(1, 12))]
    (folder / "captions.csv").write_text("\r\n".join(lines))
    data = opened(folder)
    assert data.captions["0.jpg"] == ['a dog , " running "'] and len(data.captions) == 12
    (part,) = (part for part in PARTS if "0.jpg" in data.parts[part])
    picture = data.references(part)[0][data.parts[part].index("0.jpg")]
    assert picture[:2].min() > 200 and picture[4:].max() < 50


def test_bad_lines_are_left_out_and_named(folder, capsys):
    (folder / "half.png").write_bytes((folder / "3.png").read_bytes()[:60])
    (folder / "text.png").write_text("no image")
    first = len((folder / "captions.tsv").read_text().splitlines()) + 1
    with (folder / "captions.tsv").open("a") as file:
        file.write(
            "gone.png\tA cat\n4.png A dog\n4.png\ta\tb\n4.png\t \nhalf.png\tA cat\ntext.png\tA cat\n\tA cat\n"
        )
    data = opened(folder)
    assert len(data.captions) == 20 and data.captions["4.png"] == ["this is 4 ."]
    expected = [
        "no image 'gone.png'",
        "2 fields are needed, a file name and a caption; received 1",
        "2 fields are needed, a file name and a caption; received 3",
        "the caption of '4.png' has no words",
        "the image 'half.png' cannot be read: ",
        "the image 'text.png' cannot be read: cannot identify image file 'text.png'",
        "no image ",
    ]
    assert len(data.dropped) == len(expected)
    for number, (line, message) in enumerate(zip(data.dropped, expected, strict=True), first):
        assert line.startswith(f"captions.tsv:{number}: {message}") and "\n" not in line
    told = capsys.readouterr().err
    assert told.startswith("warning: ") and told.count("\n") == 1
    assert f"7 lines left out, the first: captions.tsv:{first}: no image 'gone.png'" in told
    assert data.assets.values["text.json"]["dropped"] == data.dropped


def test_what_is_no_set_of_captions_is_refused_in_one_line(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    for path in (empty, empty / "gone"):
        with pytest.raises(FileNotFoundError, match=r"^no captions.tsv or captions.csv in '[^\n]*FOLDER$"):
            _ = opened(path).parts
    (empty / "captions.tsv").write_text("a.png\tA cat\nb.png\tA dog\n")
    with pytest.raises(
        ValueError, match=r"has 0 images with captions; .* 2 lines left out, the first: captions.tsv:1: no"
    ):
        _ = opened(empty).parts
    (empty / "captions.tsv").write_bytes("a.png\tUn élève\n".encode("latin1"))
    with pytest.raises(ValueError, match="is not UTF-8: byte 0xe9 at offset 9; convert it"):
        _ = opened(empty).parts
    (empty / "captions.tsv").unlink()
    (empty / "captions.csv").write_text('a.png,"A cat\nb.png,A dog\n')
    with pytest.raises(ValueError, match=r"captions.csv', line 2: unexpected end of data"):
        _ = opened(empty).parts
    for options, message in (
        ({"length": 0}, "length must be at least 1"),
        ({"min_count": 99}, "leaves no word"),
    ):
        with pytest.raises(ValueError, match=message):
            _ = opened(folder, **options).tokenizer
    with pytest.raises(ValueError, match="size must be at least 1 x 1, received 0 x 8"):
        Captions("x", Assets(), (0, 8))


def test_another_set_is_refused(folder):
    data = opened(folder)
    assert data.parts
    (folder / "captions.tsv").write_text((folder / "captions.tsv").read_text().replace("This", "That"))
    with pytest.raises(ValueError, match="is not the one of this run"):
        _ = Captions(str(folder), data.assets, (6, 8)).parts
