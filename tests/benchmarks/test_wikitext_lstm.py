"""The peer in PyTorch has our module, our batches and our schedule."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab import config as configs
from lmlab.data import text
from lmlab.models.recurrent_lm import RecurrentLM
from lmlab.training import optimizer

torch = pytest.importorskip("torch")

from benchmarks import wikitext_lstm  # noqa: E402

IDS = np.random.default_rng(0).integers(0, 11, 62).astype(np.int32)
EXPERIMENT = Path(__file__).parents[2] / "experiments" / "recurrent_lm.py"


def test_logits_are_ours_at_equal_weights():
    tokens = jnp.asarray(IDS[:15].reshape(3, 5))
    model, module = RecurrentLM(11, "lstm", 2, 8, tie_embeddings=True), wikitext_lstm.LSTM(11, 8, 2, 0.0)
    variables = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), tokens))
    params = variables["params"]
    ours = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(p.numel() for p in module.parameters()) == ours + 2 * 32  # it has a second bias in each layer
    with torch.no_grad():
        module.embed.weight.copy_(torch.tensor(np.asarray(params["embed"]["embedding"])))
        for layer in range(2):
            inward, u = params["recurrent"][f"input_{layer}"], params["recurrent"][f"recurrent_{layer}"]
            for name, value in (("weight_ih", inward["kernel"].T), ("weight_hh", u.T)):
                getattr(module.recurrent, f"{name}_l{layer}").copy_(torch.tensor(np.asarray(value)))
            for name in ("bias_ih", "bias_hh"):
                getattr(module.recurrent, f"{name}_l{layer}").zero_()
        logits = module(torch.tensor(np.asarray(tokens)).long())[0].numpy()
    with jax.default_matmul_precision("float32"):
        np.testing.assert_allclose(model.apply(variables, tokens), logits, atol=1e-5)


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
