from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab import config as configs
from lmlab.decoding import beam, sampling
from lmlab.experiment import Assets
from lmlab.models.seq2seq import Seq2Seq
from lmlab.tasks import NextTargetToken

FILE = Path(__file__).parents[2] / "experiments" / "seq2seq.py"
KINDS = {
    "plain": {"attention": "none", "cell": "gru", "num_layers": 2, "reverse": True},
    "luong": {"attention": "luong", "score": "bilinear", "reverse": True},
    "bahdanau": {"attention": "bahdanau", "score": "additive", "bidirectional": True},
    "embeddings": {"attention": "luong", "score": "bilinear", "value": "embeddings", "reverse": True},
}
SOURCE = jnp.array([[5, 3, 4, 2], [4, 2, 0, 0], [3, 3, 2, 0]])
TARGET = jnp.array([[1, 5, 6, 2, 0], [1, 3, 2, 0, 0], [1, 4, 4, 4, 2]])


pytestmark = pytest.mark.usefixtures("compiled_in_haste")


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


def load(kind, scale=3.0):
    model = Seq2Seq(6, 7, d_model=8, d_embed=5, **KINDS[kind])
    variables = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), SOURCE, TARGET))
    return model, jax.tree.map(lambda p: scale * p, variables)


@pytest.mark.parametrize("kind", list(KINDS))
def test_step_by_step_is_the_whole_target(kind):
    model, variables = load(kind)
    whole = jax.jit(model.apply)(variables, SOURCE, TARGET)
    (step, carry), later = (
        jax.jit(model.begin)(variables, SOURCE),
        jax.jit(lambda step, *inputs: step(*inputs)),
    )
    for t in range(TARGET.shape[1]):
        logits, carry = later(step, carry, TARGET[:, t])
        np.testing.assert_allclose(logits, whole[:, t], atol=1e-5)


@pytest.mark.parametrize("kind", list(KINDS))
def test_no_token_sees_those_to_come_and_padding_of_the_source_nothing_at_all(kind):
    model, variables = load(kind)
    apply = jax.jit(lambda source, target: model.apply(variables, source, target))
    whole = apply(SOURCE, TARGET)
    later = apply(SOURCE, TARGET.at[:, 3:].set(6))
    np.testing.assert_allclose(later[:, :3], whole[:, :3], atol=1e-6)
    assert np.abs(later[:, 3:] - whole[:, 3:]).max() > 1e-3
    alone = apply(SOURCE[1:2, :2], TARGET[1:2])
    np.testing.assert_allclose(alone, whole[1:2], atol=1e-5)
    other = apply(SOURCE.at[0, 3].set(5), TARGET)
    assert np.abs(other[0] - whole[0]).max() > 1e-4, "the last token of the source is read"


@pytest.mark.parametrize("kind", ["luong", "bahdanau", "embeddings"])
def test_weights_are_of_what_is_there(kind):
    model, variables = load(kind)
    weights = jax.jit(model.weights)(variables, SOURCE, TARGET)
    assert weights.shape == (3, 4, 4)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert not weights[1, :, 2:].any() and not weights[2, :, 3:].any()
    with pytest.raises(ValueError, match="a model without attention has no alignment"):
        load("plain")[0].weights({}, SOURCE, TARGET)


def test_values_may_be_embeddings():
    """Each where its token stands, though the encoder reads from the end."""
    model, variables = load("embeddings")
    memory, _ = model.apply(variables, SOURCE, method="encode")
    table = variables["params"]["source_embed"]["embedding"]
    np.testing.assert_array_equal(memory.values, table[SOURCE])
    assert memory.keys.shape == (3, 4, 8)


def test_reading_from_the_end_is_reading_the_turned_source():
    """The same encoder on sources that are turned by hand, padding left where it is."""
    model, variables = load("luong")
    forward = model.clone(reverse=False)
    turned = jnp.array([[2, 4, 3, 5], [2, 4, 0, 0], [2, 3, 3, 0]])
    one, other = (
        jax.jit(lambda s, m=m: (m.apply(variables, s, TARGET), m.weights(variables, s, TARGET)))(source)
        for m, source in ((model, SOURCE), (forward, turned))
    )
    np.testing.assert_allclose(one[0], other[0], atol=1e-5)
    np.testing.assert_allclose(one[1][0, :, ::-1], other[1][0], atol=1e-5)


def test_the_loss_counts_target_tokens_alone():
    model, variables = load("bahdanau")
    task, params = NextTargetToken(model), variables["params"]
    loss = jax.jit(lambda batch: task.loss(params, {}, batch, jax.random.key(0), False)[0])
    whole = loss({"source": SOURCE, "target": TARGET})
    assert float(whole.count) == 3 + 2 + 4
    rows = [loss({"source": SOURCE[i : i + 1], "target": TARGET[i : i + 1]}) for i in range(3)]
    np.testing.assert_allclose(whole.total, sum(float(row.total) for row in rows), rtol=1e-5)
    masked = loss({"source": SOURCE, "target": TARGET, "mask": jnp.array([1.0, 0.0, 1.0])})
    np.testing.assert_allclose(masked.total, float(rows[0].total) + float(rows[2].total), rtol=1e-5)
    logs = jax.nn.log_softmax(jax.jit(model.apply)(variables, SOURCE[1:2], TARGET[1:2]))[0]
    np.testing.assert_allclose(rows[1].total, -logs[0, 3] - logs[1, 2], rtol=1e-5)


@pytest.mark.parametrize("kind", ["bahdanau"])
def test_hypotheses_share_the_memory_of_their_source(kind):
    """A beam's best is scored as its tokens are by the whole model; a beam of one is greedy."""
    model, variables = load(kind)
    (step, carry), start = jax.jit(model.begin)(variables, SOURCE), jnp.ones((3, 1), jnp.int32)
    whole = jax.jit(model.apply)
    found = beam.search(step, carry, start, 3, 5, end=2)
    for row in range(3):
        for i in range(3):
            tokens = found.tokens[row, i][None]
            inputs = jnp.concatenate([start[:1], tokens[:, :-1]], axis=1)
            logs = jax.nn.log_softmax(whole(variables, SOURCE[row : row + 1], inputs))[0]
            length = int(found.lengths[row, i])
            expected = logs[jnp.arange(5), tokens[0]][:length].sum()
            np.testing.assert_allclose(found.scores[row, i], expected, atol=1e-4)
    greedy = sampling.sample(step, carry, start, jnp.ones(3, int), jax.random.key(0), 5, 0.0, end=2)
    np.testing.assert_array_equal(
        beam.search(step, carry, start, 1, 5, end=2).tokens[:, 0], greedy.tokens[:, 1:]
    )


def test_dropout_falls_in_training_alone():
    model, variables = load("bahdanau")
    model = model.clone(dropout=0.5)
    run = jax.jit(
        lambda key, train: model.apply(variables, SOURCE, TARGET, train, rngs={"dropout": key}),
        static_argnums=1,
    )
    one, two = (run(jax.random.key(i), True) for i in range(2))
    assert np.abs(one - two).max() > 1e-3
    np.testing.assert_array_equal(run(jax.random.key(0), False), run(jax.random.key(1), False))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"attention": "self"}, "unknown attention 'self'; allowed: none, luong, bahdanau"),
        ({"value": "keys"}, "unknown value 'keys'; allowed: states, embeddings"),
        ({"cell": "tree"}, "unknown cell 'tree'"),
        ({"d_model": 0}, "d_model must be at least 1, received 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, received 1.0"),
    ],
)
def test_bad_input_is_one_line(options, told):
    with pytest.raises(ValueError) as error:
        Seq2Seq(6, 7, **options)
    assert str(error.value).startswith(told) and "\n" not in str(error.value)


def test_joined_pairs_are_scored_by_every_length_they_reach(tmp_path):
    """Of ten words at most, of which five are joined: 50 words."""
    words = np.random.default_rng(0).choice(["un", "deux", "trois", "cinq"], (300, 10))
    lines = [f"{' '.join(row[:9])} {i}\t{' '.join(row)}" for i, row in enumerate(words)]
    path = tmp_path / "pairs.tsv"
    path.write_text("\n".join(lines) + "\n")
    small = {"data.path": str(path), "data.vocab_size": 270, "data.join": 20, "decoding.most": 4}
    small |= {"model.d_model": 8, "model.d_embed": 8}
    config, module = configs.load(f"{FILE}:long", small)
    experiment = module.build(config, Assets())
    batch = {key: jnp.ones((1, 4), jnp.int32) for key in ("source", "target")}
    params, _ = experiment.task.init(jax.random.key(0), batch)
    scores, _ = experiment.evaluations["lengths"]({"params": nn.meta.unbox(params)}, jax.random.key(0))
    assert list(scores) == [f"bleu_{low + 1}_to_{low + 10}" for low in range(0, 50, 10)]
    assert module.edges(configs.load(f"{FILE}:long", {"data.max_words": 0})[0])[-1] == 60
