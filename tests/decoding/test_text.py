import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab.data.tokenizers import CharTokenizer
from lmlab.decoding.text import text_sampler
from lmlab.models.recurrent_lm import RecurrentLM

pytestmark = pytest.mark.usefixtures("compiled_in_haste")


def test_a_beam_tells_the_likeliest_texts_and_their_log_probabilities():
    tokenizer = CharTokenizer.train("abc")
    model = RecurrentLM(3, "gru", d_model=8)
    variables = nn.meta.unbox(model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))
    variables = jax.tree.map(lambda p: 5 * p, variables)
    sample = text_sampler(model, tokenizer)
    (one, two) = sample(variables, jax.random.key(0), prompt=["ab", "c"], max_tokens=4, beam_size=3).texts
    assert all(line.split("  ")[1].startswith("ab") for line in one.split("\n"))
    scores = [float(line.split("  ")[0]) for line in two.split("\n")]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    for line, score in zip(two.split("\n"), scores, strict=True):
        ids = jnp.asarray(tokenizer.encode(line.split("  ")[1]))[None]
        assert ids.shape == (1, 5)
        logs = jax.nn.log_softmax(model.apply(variables, ids[:, :-1]))[0]
        np.testing.assert_allclose(logs[jnp.arange(4), ids[0, 1:]].sum(), score, atol=2e-3)
    greedy = sample(variables, jax.random.key(0), prompt="c", max_tokens=4, temperature=0.0).texts
    narrow = sample(variables, jax.random.key(0), prompt="c", max_tokens=4, beam_size=1).texts
    assert narrow[0].split("  ")[1] == greedy[0]
    with pytest.raises(ValueError, match="beam_size must be between 1 and the vocabulary, 3; received 4"):
        sample(variables, jax.random.key(0), prompt="c", max_tokens=4, beam_size=4)
