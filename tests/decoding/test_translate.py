import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab.data.rearranged import Rearranged
from lmlab.decoding.translate import Translator
from lmlab.models.seq2seq import Seq2Seq

WORDS = Rearranged("sorting", 1, 9, 40)
SENTENCES = [source for source, _ in WORDS.examples("train")]


pytestmark = pytest.mark.usefixtures("compiled_in_haste")


@pytest.fixture(scope="module")
def made():
    size = WORDS.tokenizers[0].vocab_size
    model = Seq2Seq(size, size, d_model=8, d_embed=6, attention="luong", score="dot")
    rows = jnp.ones((1, 3), jnp.int32)
    variables = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), rows, rows))
    variables = jax.tree.map(lambda p: 4 * p, variables)
    return Translator(model, WORDS.tokenizers[1], WORDS.encode_sources, 7), variables


def test_batches_of_like_length_answer_in_the_order_asked(made):
    translator, variables = made
    rows = WORDS.encode_sources(SENTENCES)
    together = translator.answers(variables, rows, beam_size=3, batch_size=16)
    assert len(together) == len(rows)
    for i in (0, 7, 39):
        alone = translator.answers(variables, rows[i : i + 1], beam_size=3)[0]
        assert [a.text for a in alone] == [a.text for a in together[i]]
        np.testing.assert_allclose([a.score for a in alone], [a.score for a in together[i]], atol=1e-4)
        scores = [answer.score for answer in together[i]]
        assert scores == sorted(scores, reverse=True)
        best = together[i][0]
        assert best.ids[0] == translator.start
        shown = best.ids[1:-1] if best.ids[-1] == translator.end else best.ids[1:]
        assert best.text == WORDS.tokenizers[1].decode(shown)
    assert translator.texts(variables, rows, beam_size=3) == [best[0].text for best in together]
    assert translator.texts(variables, rows[:0]) == []


def test_a_file_keeps_its_lines_and_names_the_bad_ones(made, tmp_path):
    translator, variables = made
    given, written = tmp_path / "in.txt", tmp_path / "new" / "out.txt"
    given.write_bytes(b"cab\n\n\xff\xfe\nz\nabcdefghi\nb1\n")
    wrong = translator.file(variables, str(given), str(written), 8)
    assert wrong[0] == "line 2: empty" and wrong[1] == "line 3: not UTF-8, byte 0xff at 0"
    assert wrong[2] == "line 5: 10 tokens; allowed: up to 8" and wrong[3].startswith("line 6: ")
    assert len(wrong) == 4 and "'1'" in wrong[3]
    lines = written.read_text().split("\n")
    assert len(lines) == 7 and [bool(line) for line in lines] == [
        True,
        False,
        False,
        True,
        False,
        False,
        False,
    ]
    assert lines[0] == translator.texts(variables, WORDS.encode_sources(["cab"]))[0]
    with pytest.raises(ValueError, match=r"input: '.*nowhere' cannot be read: No such file or directory"):
        translator.file(variables, str(tmp_path / "nowhere"), str(written), 8)


def test_draws_at_no_temperature_are_greedy(made):
    translator, variables = made
    rows = WORDS.encode_sources(SENTENCES[:5])
    drawn = translator.draws(variables, rows, jax.random.key(0), temperature=0.0)
    greedy = [best[0] for best in translator.answers(variables, rows)]
    assert [answer.text for answer in drawn] == [answer.text for answer in greedy]
    np.testing.assert_allclose([a.score for a in drawn], [a.score for a in greedy], atol=1e-4)
    others = [translator.draws(variables, rows, jax.random.key(i), temperature=2.0)[0].text for i in range(4)]
    assert len(set(others)) > 1
