"""The peer in PyTorch has our module, our batches and our schedule."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmlab import config as configs
from lmlab.data import text
from lmlab.models.recurrent_lm import Carried, RecurrentLM
from lmlab.training import optimizer

torch = pytest.importorskip("torch")

from benchmarks import wikitext_lstm  # noqa: E402

MODEL = RecurrentLM(11, "lstm", 2, 8, tie_embeddings=True)
IDS = np.random.default_rng(0).integers(0, 11, 62).astype(np.int32)
EXPERIMENT = Path(__file__).parents[2] / "experiments" / "recurrent_lm.py"


def copied(params):
    """The module with our weights; it has a second bias in each layer, which is 0."""
    module = wikitext_lstm.LSTM(11, 8, 2, 0.0)
    ours = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(p.numel() for p in module.parameters()) == ours + 2 * 32
    wikitext_lstm.begin_as_ours(module, params)
    return module


def test_logits_are_ours_at_equal_weights():
    tokens = jnp.asarray(IDS[:15].reshape(3, 5))
    variables = nn.meta.unbox(jax.jit(MODEL.init)(jax.random.key(0), tokens))
    with torch.no_grad():
        logits = copied(variables["params"])(torch.tensor(np.asarray(tokens)).long())[0].numpy()
    with jax.default_matmul_precision("float32"):
        np.testing.assert_allclose(MODEL.apply(variables, tokens), logits, atol=1e-5)


def test_updates_are_ours_but_for_the_second_bias():
    task, source = Carried(MODEL), text.streams(IDS, 6, 3, 0)
    params, collections = nn.meta.unbox(task.init(jax.random.key(0), source.batch(source.data, 0)))
    module, before = copied(params), np.asarray(params["embed"]["embedding"])
    ours, adam = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2)), torch.optim.Adam
    moving = [parameter for parameter in module.parameters() if parameter.requires_grad]
    theirs, state, carried = adam(moving, lr=1e-2), ours.init(params), None

    @jax.jit
    def update(params, collections, state, batch):
        def loss(params):
            value, _, after = task.loss(params, collections, batch, jax.random.key(0), True)
            return value.total / value.count, after

        (value, after), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        changes, state = ours.update(gradient, state)
        return value, optax.apply_updates(params, changes), after, state

    streams, losses = torch.tensor(IDS[: 3 * 20]).view(3, 20).long(), []
    for step, (inputs, targets) in enumerate(wikitext_lstm.windows(streams, 6)):
        with jax.default_matmul_precision("float32"):
            batch = source.batch(source.data, step)
            value, params, collections, state = update(params, collections, state, batch)
        logits, carried = module(inputs, carried)
        carried = tuple(part.detach() for part in carried)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        theirs.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 0.1)
        theirs.step()
        losses.append((float(value), loss.item()))
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-5)
    moved = module.embed.weight.detach().numpy()
    np.testing.assert_allclose(params["embed"]["embedding"], moved, atol=1e-4)
    assert np.abs(moved - before).max() > 0.02


def test_batches_are_ours():
    source = text.streams(IDS, 6, 3, 0)
    streams = torch.tensor(IDS[: 3 * 20]).view(3, 20)
    theirs = list(wikitext_lstm.windows(streams, 6))
    assert len(theirs) == source.steps_per_epoch == 4
    for step, (inputs, targets) in enumerate(theirs):
        batch = source.batch(source.data, step)
        length = inputs.shape[1]
        assert int(batch["mask"].sum()) == targets.numel()
        np.testing.assert_array_equal(batch["tokens"][:, :length], inputs)
        np.testing.assert_array_equal(batch["tokens"][:, 1 : length + 1], targets)


def test_its_schedule_is_ours():
    config, _ = configs.load(f"{EXPERIMENT}:wikitext,lstm,cpu")
    shape = optimizer.schedule_shape("cosine", 20, 1000, config.optimizer.final)
    for step in (0, 7, 19, 20, 500, 999):
        ours = config.optimizer.learning_rate * float(shape(step))
        np.testing.assert_allclose(wikitext_lstm.rate(step, config.optimizer, 1000, 20), ours, rtol=1e-5)


def test_it_learns():
    config, _ = configs.load(f"{EXPERIMENT}:wikitext,lstm,demo", {"duration": "40 epochs", "batch_size": 2})
    config.data.context, config.model.d_model, config.model.dropout = 8, 16, 0.0
    config.optimizer.learning_rate = 2e-2
    ids = torch.arange(64) % 4
    model = wikitext_lstm.train(config, ids, 4, lambda line: None)
    assert wikitext_lstm.loss_of(model, ids, 8) < 0.3


def test_it_begins_with_the_weights_of_our_run(tmp_path):
    import lmlab

    spec, short = f"{EXPERIMENT}:wikitext,lstm,demo", {"duration": "1 step", "optimizer.learning_rate": 1e-30}
    run = lmlab.train(spec, tmp_path / "run", {**short, "seed": 3, "batch_size": 8, "evaluate_every": "0"})
    begun = wikitext_lstm.our_weights(run.config, run.experiment.task.model.vocab_size)
    moved = nn.meta.unbox(run.variables["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-20), begun, moved)
