import pytest

from lmlab.data import locate


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "data" / "text").mkdir(parents=True)
    monkeypatch.setenv("LMLAB_DATA", str(tmp_path / "data"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def test_as_given_comes_before_the_data_folder(folder):
    inside = folder / "data" / "text" / "a.txt"
    inside.write_text("inside")
    assert locate.text_file("text/a.txt") == inside
    (folder / "here" / "text").mkdir()
    (folder / "here" / "text" / "a.txt").write_text("given")
    assert locate.text_file("text/a.txt").read_text() == "given"
    assert locate.text_file(inside) == inside


@pytest.mark.parametrize("set_folder", [True, False])
def test_missing_file_is_one_line_that_helps(folder, monkeypatch, set_folder):
    if not set_folder:
        monkeypatch.delenv("LMLAB_DATA")
    with pytest.raises(FileNotFoundError) as error:
        locate.text_file("text/none.txt")
    message = str(error.value)
    assert "\n" not in message
    for part in ("'text/none.txt'", str(folder / "here"), "--config.data.path=FILE", "LMLAB_DATA", "demo"):
        assert part in message
    assert (str(folder / "data") in message) == set_folder
    assert ("LMLAB_DATA is not set" in message) != set_folder


def test_several_files(folder):
    text = folder / "data" / "text"
    for name in ("b.txt", "a.txt", "c.txt.gz", "notes.md"):
        (text / name).write_text(name)

    def names(spec):
        return [path.name for path in locate.text_files(spec)]

    assert names("text") == ["a.txt", "b.txt", "c.txt.gz"]
    assert names("text/*.txt") == ["a.txt", "b.txt"]
    assert names("text/b.txt, text/a.txt") == ["b.txt", "a.txt"]
    assert names("text/notes.md,text/?.txt") == ["notes.md", "a.txt", "b.txt"]
    (text / "d,[1].txt").write_text("a name with a comma and brackets")
    assert names("text/d,[1].txt") == ["d,[1].txt"]


def test_nothing_found(folder):
    (folder / "data" / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty' holds no \*\.txt"):
        locate.text_files("empty")
    with pytest.raises(FileNotFoundError, match=r"no text file 'text/\*\.csv'"):
        locate.text_files("text/*.csv")
    with pytest.raises(ValueError, match="no text file was named"):
        locate.text_files("")


def test_tfds_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert locate.tfds_folder("given") == locate.Path("given")
    assert locate.tfds_folder() == folder / "tensorflow_datasets"
    (folder / "data" / "tfds").mkdir()
    assert locate.tfds_folder("") == folder / "data" / "tfds"
    monkeypatch.delenv("LMLAB_DATA")
    assert locate.tfds_folder() == folder / "tensorflow_datasets"
