import numpy as np
import pytest

from lmlab.data.rearranged import Rearranged


@pytest.mark.parametrize("kind", ["reversing", "sorting"])
def test_words_are_rearranged_and_their_alignment_is_told(kind):
    words = Rearranged(kind, 2, 6, 200)
    seen = set()
    for part, count in (("train", 200), ("validation", 20), ("test", 20)):
        arrays, known = words.arrays(part), words.alignment(part)
        tokenizer = words.tokenizers[0]
        assert len(arrays["source"]) == count and arrays["source"].shape[1] == 7
        for (source, target), x, y, places in zip(
            words.examples(part), arrays["source"], arrays["target"], known, strict=True
        ):
            assert source not in seen and len(set(source)) == len(source) and 2 <= len(source) <= 6
            seen.add(source)
            assert target == (source[::-1] if kind == "reversing" else "".join(sorted(source)))
            assert tokenizer.decode(x[x > 0]) == f"{source}<end>"
            assert tokenizer.decode(y[y > 0]) == f"<start>{target}<end>"
            assert "".join(source[i] for i in places if i >= 0) == target
            assert (places[len(target) :] == -1).all()


def test_the_words_are_the_same_each_time_and_others_by_another_seed():
    first = Rearranged("sorting", count=50).examples("train")
    assert first == Rearranged("sorting", count=50).examples("train")
    assert first != Rearranged("sorting", count=50, split_seed=1).examples("train")


def test_bad_input_is_one_line():
    with pytest.raises(ValueError, match="unknown kind 'turning'; allowed: reversing, sorting"):
        Rearranged("turning")
    with pytest.raises(ValueError, match="must be 1 to 26, in this order; received 5 and 4"):
        Rearranged("sorting", 5, 4)
    with pytest.raises(ValueError, match="words of 1 to 1 letters are too few"):
        Rearranged("sorting", 1, 1, 100).examples("train")
    assert np.array(Rearranged("sorting", 1, 1, 20).encode_sources(["z"])).shape == (1, 2)
