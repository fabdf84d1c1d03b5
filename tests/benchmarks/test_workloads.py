"""Both sides of a workload are the same: as many parameters, the same loss, the same logits at equal weights."""

import math
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import word_vectors, workloads
from lmlab import config as configs
from lmlab.decoding.translate import Translator
from lmlab.models.seq2seq import Seq2Seq

torch = pytest.importorskip("torch")

from benchmarks import ours, peers, translation  # noqa: E402

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SPECS = {
    "names_mlp": "nplm.py:cpu",
    "lstm_tied": "recurrent_lm.py:wikitext,lstm,cpu",
    "seq2seq": "seq2seq.py:luong,cpu",
}
VOCAB, WIDTH = 9, 8


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


@pytest.mark.parametrize("name", SPECS)
def test_sizes_are_those_of_the_experiment(name):
    config, _ = configs.load(f"{EXPERIMENTS / SPECS[name]}")
    said = {**config.model, **config.data, "batch_size": config.batch_size}
    sizes = workloads.WORKLOADS[name].sizes
    assert sizes.items() >= {key: value for key, value in said.items() if key in sizes}.items()
    assert len(sizes.keys() & said.keys()) >= 4


def tiny(name):
    """(builder, sizes, none above 16)."""
    workload = workloads.WORKLOADS[name]
    return workload.builder, {key: min(value, 16) for key, value in workload.sizes.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SPECS, "translate_greedy", "translate_beam"])
def test_both_sides_run(name):
    builder, sizes = tiny(name)
    for side in (ours, peers):
        run, _ = getattr(side, builder)(**sizes)
        run(2)


@pytest.mark.parametrize(("name", "more"), [("names_mlp", 0), ("lstm_tied", 128), ("seq2seq", 128)])
def test_parameters_and_first_loss(name, more, monkeypatch):
    """nn.LSTM has a second bias in each layer. Before training all tokens are about as likely."""
    monkeypatch.setattr(ours, "training", lambda task, source, *_, **__: (task, source))
    monkeypatch.setattr(
        peers, "training", lambda loss, parameters, batches, *_, **__: (loss, [*parameters], batches)
    )
    torch.manual_seed(0)
    builder, sizes = tiny(name)
    task, source = getattr(ours, builder)(**sizes)
    loss, parameters, batches = getattr(peers, builder)(**sizes)

    shapes, collections = jax.eval_shape(task.init, jax.random.key(0), source.example())
    mean, _, _ = jax.jit(task.loss, static_argnums=4)(
        drawn(shapes, 0.1), drawn(collections, 0.0), source.example(), jax.random.key(0), True
    )
    with torch.no_grad():
        losses = [float(mean.value), loss(next(batches)).item()]
    assert losses == pytest.approx([math.log(sizes["vocab_size"])] * 2, rel=0.1)
    assert sum(p.numel() for p in parameters) == sum(leaf.size for leaf in jax.tree.leaves(shapes)) + more


def drawn(shapes, deviation):
    """Arrays from N(0, deviation): initializers take seconds to compile."""
    draw = np.random.default_rng(0)
    fill = lambda leaf: jnp.float32(draw.normal(0, deviation, leaf.shape))  # noqa: E731
    return jax.tree.map(fill, nn.unbox(shapes))


def copy(into, value):
    with torch.no_grad():
        into.copy_(torch.tensor(np.asarray(value)))


@pytest.fixture(scope="module")
def translators():
    """(ours, its variables, the peer), with equal weights so large that sentences end."""
    ids, sizes = jnp.ones((1, 3), jnp.int32), {"d_model": WIDTH, "d_embed": 6}
    model, module = Seq2Seq(VOCAB, VOCAB, **sizes), translation.Seq2Seq(VOCAB, VOCAB, **sizes)
    variables = drawn(jax.eval_shape(model.init, jax.random.key(0), ids, ids), 1.0)
    params = variables["params"]
    for name in ("source_embed", "target_embed"):
        copy(getattr(module, name).weight, params[name]["embedding"])
    for name in ("encoder", "decoder"):
        lstm = getattr(module, name)
        copy(lstm.weight_ih_l0, params[name]["input_0"]["kernel"].T)
        copy(lstm.weight_hh_l0, params[name]["recurrent_0"].T)
        copy(lstm.bias_ih_l0, params[name]["input_0"]["bias"])
        copy(lstm.bias_hh_l0, jnp.zeros(4 * WIDTH))
    for name in ("combine", "head"):
        copy(getattr(module, name).weight, params[name]["kernel"].T)
        copy(getattr(module, name).bias, params[name]["bias"])
    return Translator(model, ours.Unread(), np.asarray, 6), variables, module.eval()


@pytest.fixture(scope="module")
def rows():
    draw = np.random.default_rng(0)
    ids = draw.integers(4, VOCAB, (20, 9)).astype(np.int32)
    return np.where(np.arange(9) < draw.integers(1, 10, (20, 1)), ids, 0)


@pytest.mark.parametrize("whole", [False, True], ids=["padded", "whole"])
def test_logits_of_translation(translators, rows, whole):
    translator, variables, module = translators
    source = np.where(rows > 0, rows, 4) if whole else rows
    target = rows[:, :5]
    with torch.no_grad():
        theirs = module(torch.tensor(source), torch.tensor(target)).numpy()
    mine = jax.jit(translator.model.apply)(variables, jnp.asarray(source), jnp.asarray(target))
    np.testing.assert_allclose(mine, theirs, atol=1e-4)


@pytest.mark.parametrize(("beam_size", "penalty"), [(1, 0.0), (3, 0.0), (3, 2.0)])
def test_hypotheses_of_translation(translators, rows, beam_size, penalty):
    translator, variables, module = translators
    mine = translator.answers(variables, rows, beam_size, penalty, batch_size=8)
    with torch.inference_mode():
        theirs = translation.translate(module, torch.tensor(rows), translator.most, beam_size, 8, penalty)
    ended = 0
    for answers, found in zip(mine, theirs, strict=True):
        assert [answer.ids[1:].tolist() for answer in answers] == [ids for ids, _ in found]
        scores = [score for _, score in found]
        np.testing.assert_allclose([answer.score for answer in answers], scores, atol=1e-4)
        ended += sum(ids[-1] == translation.END and len(ids) < 6 for ids, _ in found)
    assert 0 < ended < 20 * beam_size, "some sentences end, some do not"


def test_word_vectors_are_a_row_of_the_table():
    rates = [{"words_per_second": 100.0, "ours_words_per_second": value} for value in (80.0, 120.0, 130.0)]
    record = word_vectors.record("cbow", 2, rates)
    (row,) = record["rows"]
    assert row["ratio"]["median"] == 1.2 and row["met"] and row["peer"] == "gensim, 2 threads"
    assert record["runs"] == rates and record["machine"]["cores"] > 0
