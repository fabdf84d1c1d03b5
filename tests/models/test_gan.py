"""Generative adversarial networks: their losses, whom a step moves, resuming with two optimizers."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lmlab
from lmlab import config as configs
from lmlab.data import points
from lmlab.evaluation import parzen
from lmlab.experiment import Assets
from lmlab.models.gan import Adversaries, ConvDiscriminator, ConvGenerator, Discriminator, Generator
from lmlab.training import optimizer
from lmlab.training.step import create, make_step, make_update

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


def convolutional():
    return Adversaries(ConvGenerator((8, 4), (8, 8)), ConvDiscriminator((4, 8)), 5)


def connected():
    return Adversaries(Generator((7,), (2,), bounded=False), Discriminator((6,)), 3)


def images(count=6):
    return {"image": jnp.asarray(np.random.default_rng(0).random((count, 8, 8), np.float32))}


def begun(task, batch, seed=0):
    """(the state before the first step, the optimizers)."""
    clock = configs.Clock("10 steps", 6, 60)
    leaves = configs.base(optimizer={"name": "adam", "learning_rate": 1e-2, "b1": 0.5}).optimizer
    both = {part: optimizer.build(clock, **leaves) for part in ("generator", "discriminator")}
    experiment = lmlab.experiment.Experiment(task=task, step=task.step)
    state = jax.jit(lambda key: nn.meta.unbox(create(experiment, both, key, batch, False)))(
        jax.random.key(seed)
    )
    return experiment, state, both


def test_losses_are_those_of_the_paper():
    """-log D(x) - log(1 - D(G(z))), and -log D(G(z)), written out for two layers."""
    task, batch = connected(), {"x": jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)}
    params, collections = task.init(jax.random.key(0), batch)
    params = nn.meta.unbox(params)
    weights = jax.tree.map(np.asarray, params)
    assert collections == {}

    def logit(x):
        first, last = weights["discriminator"]["Dense_0"], weights["discriminator"]["Dense_1"]
        h = x @ first["kernel"] + first["bias"]
        return (np.where(h > 0, h, 0.2 * h) @ last["kernel"] + last["bias"])[:, 0]

    def drawn(key):
        z = np.asarray(jax.random.normal(jax.random.split(key)[0], (4, 3)))
        first, last = weights["generator"]["Dense_0"], weights["generator"]["Dense_1"]
        return np.maximum(z @ first["kernel"] + first["bias"], 0) @ last["kernel"] + last["bias"]

    def chance(x):
        return 1 / (1 + np.exp(-logit(x)))

    key = jax.random.key(3)
    real, fake = chance(np.asarray(batch["x"])), chance(drawn(jax.random.split(key, 3)[0]))
    loss, metrics, _ = task.loss(params, {}, batch, key, True)
    np.testing.assert_allclose(loss.value, np.mean(-np.log(real) - np.log(1 - fake)), rtol=1e-5)
    np.testing.assert_allclose(metrics["real"].value, real.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["drawn"].value, fake.mean(), rtol=1e-5)
    fake = chance(drawn(jax.random.split(key)[0]))
    loss, _, _ = task.generator_loss(params, {}, batch, key, True)
    np.testing.assert_allclose(loss.value, -np.log(fake).mean(), rtol=1e-5)


def changed(before, after):
    return any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), before, after)))


@pytest.mark.parametrize("part", ["generator", "discriminator"])
def test_an_update_moves_its_part_alone(part):
    task, batch = convolutional(), images()
    _, state, both = begun(task, batch)
    loss = {"generator": task.generator_loss, "discriminator": task.loss}[part]
    new, _ = jax.jit(lambda state: make_update(both, 1, None)(loss, part, state, batch, jax.random.key(1)))(
        state
    )
    other = {"generator": "discriminator", "discriminator": "generator"}[part]
    for name in ("params", "opt_state"):
        assert changed(getattr(state, name)[part], getattr(new, name)[part]), f"{name} of {part} stayed"
        assert not changed(getattr(state, name)[other], getattr(new, name)[other]), f"{name} of {other} moved"
    statistics, later = state.collections["batch_stats"], new.collections["batch_stats"]
    assert changed(statistics[part], later[part]) and not changed(statistics[other], later[other])


def test_a_step_moves_both_and_logs_both_losses():
    task, batch = convolutional(), images()
    experiment, state, both = begun(task, batch)
    new, metrics = jax.jit(make_step(experiment, both, jax.random.key(0)))(state, batch)
    assert all(changed(state.params[part], new.params[part]) for part in both)
    assert int(new.step) == 1 and {"loss", "generator_loss", "real", "drawn"} <= metrics.keys()


def test_each_descends_on_its_own_loss():
    """With one part held, the other's loss falls: the signs are right."""
    task, batch, key = convolutional(), images(), jax.random.key(1)
    _, state, both = begun(task, batch)
    for part, loss in (("discriminator", task.loss), ("generator", task.generator_loss)):

        @jax.jit
        def train(state, part=part, loss=loss):
            def one(state, _):
                state, metrics = make_update(both, 1, None)(loss, part, state, batch, key)
                return state, metrics["loss"].value

            return jax.lax.scan(one, state, length=30)[1]

        losses = train(state)
        assert losses[-1] < 0.9 * losses[0], part


def test_shapes_and_range_of_what_is_drawn():
    task = Adversaries(ConvGenerator((8, 4), (12, 8, 3)), ConvDiscriminator((4, 8)), 5)
    batch = {"image": jnp.zeros((2, 12, 8, 3))}
    params, collections = nn.meta.unbox(jax.jit(task.init)(jax.random.key(0), batch))
    drawn = task.sample({"params": params, **collections}, jax.random.key(0), 5)
    assert drawn.shape == (5, 12, 8, 3) and drawn.min() >= 0 and drawn.max() <= 1 and drawn.std() > 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Generator((), (2,)), r"features must be one width or more, each at least 1, received \(\)"),
        (lambda: Discriminator((4, 0)), r"received \(4, 0\)"),
        (
            lambda: ConvGenerator((4, 4), (10, 8)),
            r"images must be a multiple of 4 high and wide, received \(10, 8\)",
        ),
        (
            lambda: Adversaries(Generator((4,), (2,)), Discriminator((4,)), 0),
            "latent must be at least 1, received 0",
        ),
    ],
)
def test_what_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


# -- modes and likelihoods ---------------------------------------------------------------------------


def test_modes_are_counted():
    _, module = configs.load(f"{EXPERIMENTS}/gan.py:ring,demo")
    density, half = points.ring(8), points.ring(8).means[:4]

    class Model:
        def __init__(self, x):
            self.x = x

        def sample(self, variables, key, count):
            return self.x[jnp.arange(count) % len(self.x)]

    covered = {}
    for name, x in {"true": density.draw(jax.random.key(0), 2500), "half": half, "far": half + 1.0}.items():
        covered[name], _ = module.Coverage(Model(jnp.asarray(x)), density)({}, jax.random.key(1))
    assert covered["true"]["modes"] == 8 and covered["true"]["on_modes"] > 0.98
    assert covered["half"] == {"modes": 4, "on_modes": 1} and covered["far"] == {"modes": 0, "on_modes": 0}


def test_stacked_digits_are_three_of_the_set():
    config, module = configs.load(f"{EXPERIMENTS}/gan.py:stacked,demo")
    source = module.build(config, Assets()).train_data()
    plain = set(
        np.asarray(source.data["image"]).reshape(1437, 64).astype(np.float32).__truediv__(255).sum(1).round(3)
    )
    batch = source.example()["image"]
    assert batch.shape == (64, 8, 8, 3)
    sums = np.asarray(batch).reshape(64, 64, 3).sum(1).round(3)
    assert set(sums.ravel()) <= plain
    assert (sums[:, 0] != sums[:, 1]).mean() > 0.9 and (sums[:, 1] != sums[:, 2]).mean() > 0.9


def test_parzen_windows_against_the_sum_written_out():
    rng = np.random.default_rng(0)
    x, samples = rng.normal(size=(5, 3)).astype(np.float32), rng.normal(size=(7, 3)).astype(np.float32)
    squares = ((x[:, None] - samples[None]) ** 2).sum(-1)
    densities = np.exp(-squares / (2 * 0.4**2)) / (2 * np.pi * 0.4**2) ** 1.5
    np.testing.assert_allclose(parzen.log_likelihood(x, samples, 0.4), np.log(densities.mean(1)), rtol=1e-4)
    assert parzen.width(samples + 0.03, samples, (0.005, 0.05, 1.0)) == 0.05


# -- runs --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_optimizers_statistics_and_averages_resume_to_the_same_bits(tmp_path):
    overrides = {
        "duration": "6 steps",
        "batch_size": 8,
        "ema": 0.5,
        "evaluate_every": "0",
        "checkpoint.every": "3",
        "parallel.data": 1,
    }
    spec = f"{EXPERIMENTS}/gan.py:dcgan,demo"
    straight = lmlab.train(spec, tmp_path / "straight", overrides)
    lmlab.train(spec, tmp_path / "cut", overrides | {"duration": "3 steps"})
    cut = lmlab.train(spec, tmp_path / "cut", overrides)
    assert set(straight.variables) == {"params", "batch_stats"}
    jax.tree.map(np.testing.assert_array_equal, cut.variables, straight.variables)
    losses = [
        run.metrics()[["train/loss", "train/generator_loss"]].dropna().to_numpy() for run in (straight, cut)
    ]
    np.testing.assert_array_equal(losses[0][-1], losses[1][-1])


def test_a_missing_classifier_is_one_line(tmp_path):
    config, module = configs.load(
        f"{EXPERIMENTS}/gan.py:stacked,demo", {"data.classifier": str(tmp_path / "none")}
    )
    task = module.build(config, Assets()).task
    with pytest.raises(
        FileNotFoundError, match=r"data.classifier: no run at .*none'; lmlab train --config="
    ) as error:
        module.Modes(task, config.data.classifier)({}, jax.random.key(0))
    assert "\n" not in str(error.value)
