"""The gates that are drawn, against the cell's equations in NumPy; what the probe reads; nouns that are held out."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab import experiment
from lmlab.data import agreement
from lmlab.data.tokenizers import WordTokenizer
from lmlab.models.recurrent_lm import RecurrentLM

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "gru_memory.py"
TOKENIZER = WordTokenizer.train(agreement.grammar(1, 0), specials=("<unk>", "<end>"))


@pytest.fixture(scope="module")
def module():
    return experiment.load_module(EXPERIMENT)


@pytest.fixture(scope="module")
def made():
    model = RecurrentLM(TOKENIZER.vocab_size, "gru", 1, 6, tie_embeddings=True)
    variables = nn.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 3), jnp.int32)))
    variables = jax.tree.map(lambda leaf: 3 * leaf, variables)  # gates that are not all about a half
    return model, variables


def written_out(params, ids):
    """(states, gates) of the cell's equations, one word after the other."""
    w, b = (np.split(np.asarray(params["recurrent"]["input_0"][name]), 3, -1) for name in ("kernel", "bias"))
    u, c = (
        np.split(np.asarray(params["recurrent"]["recurrent_0"]), 3, 1),
        params["recurrent"]["candidate_bias_0"],
    )
    h, found = np.zeros(6), {"states": [], "reset": [], "update": []}
    for x in np.asarray(params["embed"]["embedding"])[ids]:
        r, z = (1 / (1 + np.exp(-(x @ w[i] + h @ u[i] + b[i]))) for i in (0, 1))
        h = z * h + (1 - z) * np.tanh(x @ w[2] + b[2] + r * (h @ u[2] + np.asarray(c)))
        for name, value in (("states", h), ("reset", r), ("update", z)):
            found[name].append(value)
    return {name: np.stack(values) for name, values in found.items()}


def test_the_gates_that_are_drawn_are_those_of_the_equations(module, made):
    model, variables = made
    ids = module.encode(TOKENIZER, [module.SENTENCE])
    expected = written_out(variables["params"], ids[0])
    found = module.gates(model, variables, ids)
    assert set(found) == {"reset", "update"}
    for name, gate in found.items():
        np.testing.assert_allclose(gate, expected[name], atol=1e-5)
        assert np.ptp(gate) > 0.05
    states = module.vectors(model, variables, ids)["state"]
    np.testing.assert_allclose(states[0], expected["states"], atol=1e-5)


def test_the_sentence_has_its_words_on_the_axis_and_unk_where_it_is_not_known(module):
    ids = module.encode(TOKENIZER, [module.SENTENCE])[0, 1:]
    shown = [TOKENIZER.decode([i]) for i in ids]
    words = module.SENTENCE.split()
    assert shown[:3] == ["The", "leaves", ","] and shown[words.index("silently")] == "<unk>"
    assert [a == b or a == "<unk>" for a, b in zip(shown, words, strict=True)] == [True] * len(words)


def test_vectors_of_words_so_far(module, made):
    ids = module.encode(TOKENIZER, ["The leaves , fell", "The tree , moved"])
    read = module.vectors(*made, ids)
    table = np.asarray(made[1]["params"]["embed"]["embedding"])
    np.testing.assert_allclose(read["last"], table[ids], atol=1e-6)
    np.testing.assert_allclose(read["bag"][1, 2], table[ids[1, :3]].mean(0), atol=1e-6)


def test_after_a_state_come_the_models_own_logits(module, made):
    model, variables = made
    ids = module.encode(TOKENIZER, ["The leaves , fell"])
    h = module.vectors(model, variables, ids)["state"]
    found = model.apply(variables, jnp.asarray(h[:, -1]), method=module.logits)
    np.testing.assert_allclose(found, jax.jit(model.apply)(variables, jnp.asarray(ids))[:, -1], atol=1e-5)


def test_a_number_that_was_planted_in_the_vectors_of_nouns_is_found(module, made):
    """In the last word's at the subject and there alone; in their mean until a noun of the other number comes."""
    model, variables = made
    table = np.array(variables["params"]["embed"]["embedding"]) / 10
    for noun in agreement.SINGULAR:
        for form, sign in ((noun, -1), (agreement.plural(noun), 1)):
            table[TOKENIZER.encode(form)[0], 0] = 5 * sign
    planted = {"params": variables["params"] | {"embed": {"embedding": jnp.asarray(table)}}}
    scalars, arrays = module.SubjectNumber(model, TOKENIZER, each=1)(planted, None)
    differs, right = arrays["differs"], {name: arrays[name].mean(1) for name in module.READERS}
    assert right["last"][0] == 1 and right["bag"][0] == 1 and right["state"][0] > 0.95
    assert abs(right["last"][1] - 0.5) < 0.05
    before = agreement.VERB - 1
    assert (
        arrays["bag"][before][~differs].mean() == 1 and abs(arrays["bag"][before][differs].mean() - 0.5) < 0.2
    )
    assert abs(right["untrained"][0] - 0.5) < 0.2
    assert scalars["bag_other"] == arrays["bag"][before][differs].mean()
    assert set(scalars) == {*module.READERS, "agrees"} | {
        f"{name}_other" for name in (*module.READERS, "agrees")
    }
    assert len(differs) == len(agreement.parted(lambda word: True)[1]) * 4 and differs.mean() == 0.5
    assert module.SubjectNumber(model, TOKENIZER).held_out
