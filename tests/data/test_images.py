import io
import json
import socket

import numpy as np
import pytest
from PIL import Image

from lmlab.data import images

TEST_COUNTS = {
    "mnist": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    "fashion_mnist": (1000,) * 10,
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LMLAB_DATA", raising=False)
    return tmp_path / "cache" / "lmlab"


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def prepare(tfds_dir, examples, name="mnist", split="train"):
    """A small prepared data set in the layout of TFDS, written without it."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=(28, 28, 1)), "label": tfds.features.ClassLabel(num_classes=10)}
    )
    folder = tfds_dir / name / "3.0.1"
    folder.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(str(folder / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1")
    for image, label in examples:
        writer.write(features.serialize_example({"image": image, "label": label}))
    writer.close()
    features.save_config(folder)
    info = {
        "fileFormat": "array_record",
        "moduleName": f"tensorflow_datasets.image_classification.{name}",
        "name": name,
        "version": "3.0.1",
        "splits": [
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": "1",
                "shardLengths": [str(len(examples))],
            }
        ],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


@pytest.fixture
def twenty(tmp_path):
    """A prepared set of 20 random images, and what it holds."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
    labels = np.arange(20) % 10
    prepare(
        tmp_path / "tfds", [(png(image), int(label)) for image, label in zip(pixels, labels, strict=True)]
    )
    return tmp_path / "tfds", pixels, labels


def test_decodes_what_was_written(twenty):
    tfds_dir, pixels, labels = twenty
    out = images.load("mnist", "train", tfds_dir)
    assert out["image"].dtype == np.uint8 and out["label"].dtype == np.int32
    np.testing.assert_array_equal(out["image"], pixels)
    np.testing.assert_array_equal(out["label"], labels)


@pytest.mark.parametrize(
    "split, chosen",
    [
        ("train[:15]", slice(0, 15)),
        ("train[15:]", slice(15, 20)),
        ("train[3:7]", slice(3, 7)),
        ("train[-4:]", slice(16, 20)),
        ("train[:10%]", slice(0, 2)),
        ("train[90%:]", slice(18, 20)),
        ("train[:99]", slice(0, 20)),
    ],
)
def test_slices_of_a_split(twenty, split, chosen):
    tfds_dir, pixels, labels = twenty
    out = images.load("mnist", split, tfds_dir)
    np.testing.assert_array_equal(out["image"], pixels[chosen])
    np.testing.assert_array_equal(out["label"], labels[chosen])


@pytest.mark.parametrize("split", ["valid", "train[", "train[3]", "train[a:b]", "train+test", ""])
def test_wrong_split(twenty, split):
    with pytest.raises(ValueError, match="unknown split"):
        images.load("mnist", split, twenty[0])


def test_empty_split_and_unknown_name(twenty):
    with pytest.raises(ValueError, match="is empty: train has 20 examples"):
        images.load("mnist", "train[20:]", twenty[0])
    with pytest.raises(ValueError, match="'cifar'; allowed: mnist, fashion_mnist"):
        images.load("cifar", "train", twenty[0])


@pytest.mark.parametrize("prepared", ["nothing", "other split", "tfrecord"])
def test_missing_data_is_one_line_and_asks_no_network(tmp_path, monkeypatch, prepared):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    tfds_dir = tmp_path / "tfds"
    if prepared == "other split":
        prepare(tfds_dir, [(png(np.zeros((28, 28), np.uint8)), 0)], split="test")
    elif prepared == "tfrecord":
        (tfds_dir / "mnist" / "3.0.1").mkdir(parents=True)
        (tfds_dir / "mnist" / "3.0.1" / "dataset_info.json").write_text("{}")
        (tfds_dir / "mnist" / "3.0.1" / "mnist-train.tfrecord-00000-of-00001").write_text("")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileNotFoundError) as error:
        images.load("mnist", "train", tfds_dir)
    message = str(error.value)
    assert "\n" not in message
    for part in (str(tfds_dir), "lmlab[prepare]", "file_format='array_record'", "LMLAB_DATA", "demo"):
        assert part in message
    assert sorted(tmp_path.rglob("*")) == before  # no empty folders left


def test_second_start_reads_the_cache(twenty, cache, monkeypatch):
    tfds_dir, pixels, _ = twenty
    images.load("mnist", "train", tfds_dir)
    assert [path.suffix for path in cache.iterdir()] == [".npz"]
    monkeypatch.setattr(images, "_decode", lambda *args: pytest.fail("decoded again"))
    np.testing.assert_array_equal(images.load("mnist", "train", tfds_dir)["image"], pixels)


def test_cache_gives_way_to_new_files_and_survives_damage(twenty, cache):
    tfds_dir, pixels, _ = twenty
    images.load("mnist", "train", tfds_dir)
    (saved,) = cache.iterdir()
    for damage in (b"", b"PK\x03\x04 not an archive", saved.read_bytes()[:5000]):
        saved.write_bytes(damage)
        np.testing.assert_array_equal(images.load("mnist", "train", tfds_dir)["image"], pixels)
    prepare(tfds_dir, [(png(np.full((28, 28), 9, np.uint8)), 4)])
    out = images.load("mnist", "train", tfds_dir)
    assert out["label"].tolist() == [4] and (out["image"] == 9).all()


def test_a_cache_that_cannot_be_written_is_no_error(twenty, tmp_path, monkeypatch):
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    assert len(images.load("mnist", "train", twenty[0])["label"]) == 20


@pytest.mark.parametrize(
    "bad, said",
    [
        (b"not an image at all", "image 1 of mnist train is damaged"),
        (png(np.arange(784, dtype=np.uint8).reshape(28, 28))[:-40], "image 1 of mnist train is damaged"),
        (
            png(np.zeros((32, 32), np.uint8)),
            r"image 1 of mnist train is \(32, 32\) of uint8; it must be \(28, 28\)",
        ),
        (png(np.zeros((28, 28, 3), np.uint8)), r"is \(28, 28, 3\)"),
    ],
)
def test_broken_images(tmp_path, cache, bad, said):
    prepare(tmp_path / "tfds", [(png(np.zeros((28, 28), np.uint8)), 0), (bad, 1)])
    with pytest.raises(ValueError, match=said) as error:
        images.load("mnist", "train", tmp_path / "tfds")
    assert "\n" not in str(error.value)
    assert not cache.exists()


@pytest.mark.parametrize("damage", ["short", "noise", "info"])
def test_broken_files(twenty, damage):
    folder = twenty[0] / "mnist" / "3.0.1"
    (records,) = folder.glob("*.array_record-*")
    if damage == "info":
        (folder / "dataset_info.json").write_text("{")
    elif damage == "short":
        records.write_bytes(records.read_bytes()[:4000])
    else:
        records.write_bytes(b"\x5a" * records.stat().st_size)
    with pytest.raises(ValueError, match=r"cannot be read: .*prepare it anew") as error:
        images.load("mnist", "train", twenty[0])
    assert "\n" not in str(error.value)


def test_digits_against_scikit_learn():
    from sklearn.datasets import load_digits

    parts = [images.digits(split) for split in ("train", "validation", "test")]
    assert [len(part["label"]) for part in parts] == [1437, 180, 180]
    together = {key: np.concatenate([part[key] for part in parts]) for key in ("image", "label")}
    assert together["image"].dtype == np.uint8 and together["image"].shape == (1797, 8, 8)

    def lines(image, label):
        return sorted(np.column_stack([image.reshape(1797, 64), label]).astype(int).tolist())

    reference = load_digits()
    expected = lines(np.rint(reference.images * 255 / 16), reference.target)
    assert lines(together["image"], together["label"]) == expected
    for part in parts:
        assert np.bincount(part["label"], minlength=10).min() >= 10
    np.testing.assert_array_equal(images.digits("test")["image"], parts[2]["image"])
    with pytest.raises(ValueError, match="'dev' of digits; allowed: train, validation, test"):
        images.digits("dev")


def test_resident_gives_every_image_once_an_epoch_in_zero_to_one():
    data = {"image": np.arange(24, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8) * 10}
    data["label"] = np.arange(24, dtype=np.int32)
    source = images.resident(data, batch_size=6, seed=1)
    batches = [source.batch(source.data, step) for step in range(source.steps_per_epoch)]
    image = np.concatenate([batch["image"] for batch in batches])
    label = np.concatenate([batch["label"] for batch in batches])
    assert image.dtype == np.float32 and label.dtype == np.int32
    assert sorted(label.tolist()) == list(range(24)) and label.tolist() != list(range(24))
    np.testing.assert_allclose(image[:, 0, 0], label * 10 / 255, rtol=1e-6)


def test_bits_are_drawn_once_with_the_probability_of_their_grey():
    grey = np.tile(np.array([0, 64, 128, 255], np.uint8), (20000, 1, 1))
    data = {"image": grey, "label": np.zeros(20000, np.int32)}
    bits = images.binarized(data, 3, 0)
    assert bits["image"].dtype == np.uint8 and set(np.unique(bits["image"])) == {0, 255}
    chance = (bits["image"][:, 0] == 255).mean(0)
    assert chance[0] == 0 and chance[3] == 1
    np.testing.assert_allclose(chance[1:3], np.array([64, 128]) / 255, atol=4 * 0.5 / 20000**0.5)
    np.testing.assert_array_equal(images.binarized(data, 3, 0)["image"], bits["image"])
    for other in ((4, 0), (3, 1)):
        assert (images.binarized(data, *other)["image"] != bits["image"]).any()
    assert bits["label"] is data["label"]


def test_noise_is_added_once_and_cut():
    data = {"image": np.full((200, 10, 10), 128, np.uint8), "label": np.zeros(200, np.int32)}
    noisy = images.with_noise(data, 0.4, 7)
    assert noisy["noisy"].dtype == np.uint8 and noisy["image"] is data["image"]
    inside = (noisy["noisy"] > 0) & (noisy["noisy"] < 255)
    assert abs(inside.mean() - 0.79) < 0.02 and abs(noisy["noisy"].mean() - 128) < 2
    np.testing.assert_array_equal(images.with_noise(data, 0.4, 7)["noisy"], noisy["noisy"])
    batch = images.resident(noisy, 8, 0).example()
    assert batch["noisy"].dtype == np.float32 and 0 <= float(batch["noisy"].min()) < 0.1
    np.testing.assert_allclose(batch["image"], 128 / 255, rtol=1e-6)


def test_half_the_size_keeps_the_mean():
    image = np.random.default_rng(0).integers(0, 256, (3, 4, 6), np.uint8)
    half = images.halved({"image": image, "label": np.zeros(3)})["image"]
    assert half.shape == (3, 2, 3) and half.dtype == np.uint8
    assert half[1, 1, 2] == round(float(image[1, 2:4, 4:6].mean()))
    assert abs(half.mean() - image.mean()) < 0.5


def test_labels_of_samples():
    assert images.labels_in_turn(-1, 12).tolist() == [*range(10), 0, 1]
    assert images.labels_in_turn(3, 2).tolist() == [3, 3]
    for label in (10, -2):
        with pytest.raises(ValueError, match=f"label must be from 0 to 9.*received {label}"):
            images.labels_in_turn(label, 2)


def test_show_images():
    shown = images.show_images(images.resident(images.digits("test"), 9, 0).example())
    assert (
        shown.images.shape == (9, 8, 8)
        and len(shown.texts) == 9
        and set("".join(shown.texts)) <= set("0123456789")
    )


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_real_files(data_folder, name):
    tfds_dir = data_folder / "tfds"
    train = images.load(name, "train", tfds_dir)
    test = images.load(name, "test", tfds_dir)
    assert train["image"].shape == (60000, 28, 28) and test["image"].shape == (10000, 28, 28)
    assert tuple(np.bincount(test["label"])) == TEST_COUNTS[name]
    # the mean pixel of the training images, as published with each set
    mean = {"mnist": 0.1307, "fashion_mnist": 0.2860}[name]
    assert round(float(train["image"].mean()) / 255, 4) == mean
    held = images.load(name, "train[55000:]", tfds_dir)
    np.testing.assert_array_equal(held["image"], train["image"][55000:])
