"""The process, the predictions, the loss, guidance and the samplers, each against NumPy or a closed form."""

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from lmlab.data import points
from lmlab.evaluation import energy
from lmlab.models.diffusion import (
    PREDICTIONS,
    Denoiser,
    Diffusion,
    PointNetwork,
    Process,
    VariationalBound,
    timesteps,
)
from lmlab.models.unet import UNet

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# -- the process -------------------------------------------------------------------------------------


def test_linear_schedule_is_ddpms():
    process = Process(1000)
    signal = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(process.signal[1:], signal, rtol=1e-5)
    assert process.signal[0] == 1 and process.signal[-1] < 1e-4


def test_cosine_schedule_is_the_papers_until_beta_is_cut():
    process = Process(100, "cosine")
    f = np.cos((np.arange(101) / 100 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(process.signal[:100], (f / f[0])[:100], rtol=1e-4)
    assert np.isclose(process.signal[100], 0.001 * process.signal[99], rtol=1e-3)
    assert (np.diff(process.signal) < 0).all()


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_many_small_steps_of_noise_have_the_moments_of_one(schedule):
    """q(x_t | x_0) by running q(x_t | x_{t-1}) t times, 20,000 times over."""
    process, t, x0 = Process(20, schedule, 0.01, 0.3), 12, 1.7
    rng, x = np.random.default_rng(0), np.full(20_000, 1.7)
    for step in range(1, t + 1):
        kept = process.signal[step] / process.signal[step - 1]
        x = np.sqrt(kept) * x + np.sqrt(1 - kept) * rng.normal(size=x.shape)
    once = process.noised(
        jnp.full(20_000, x0), jnp.full(20_000, t), jax.random.normal(jax.random.key(0), (20_000,))
    )
    for moment in (np.mean, np.std):
        np.testing.assert_allclose(moment(np.asarray(once)), moment(x), atol=0.03)
    np.testing.assert_allclose(x.mean(), np.sqrt(process.signal[t]) * x0, atol=0.03)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_every_kind_of_prediction_says_the_same_data_and_noise(kind):
    process, x0, noise = Process(50, "cosine"), normal(7, 3), normal(7, 3, seed=1)
    t = jnp.array([1, 2, 10, 20, 30, 40, 45])
    x = process.noised(x0, t, noise)
    found = process.split(kind, x, t, process.target(kind, x0, t, noise))
    np.testing.assert_allclose(found[0], x0, atol=2e-4)
    np.testing.assert_allclose(found[1], noise, atol=2e-4)


def posterior(process, x, x0, t):
    """Mean and deviation of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eqs. 6 and 7), in float64."""
    a = process.signal.astype(np.float64)
    beta = 1 - a[t] / a[t - 1]
    mean = np.sqrt(a[t - 1]) * beta / (1 - a[t]) * x0
    mean = mean + np.sqrt(1 - beta) * (1 - a[t - 1]) / (1 - a[t]) * x
    return mean, np.sqrt((1 - a[t - 1]) / (1 - a[t]) * beta)


@pytest.mark.parametrize("t", [1, 2, 37, 100])
def test_a_step_with_eta_one_is_ddpms_posterior(t):
    process, x0, noise, fresh = (
        Process(100, first=1e-3, last=0.2),
        normal(5),
        normal(5, seed=1),
        normal(5, seed=2),
    )
    x = process.noised(x0[:, None], jnp.full(5, t), noise[:, None])[:, 0]
    mean, deviation = posterior(process, *(np.asarray(each, np.float64) for each in (x, x0)), t)
    for z in (0 * fresh, fresh):
        found = process.step(x, x0, noise, jnp.int32(t), jnp.int32(t - 1), 1.0, z)
        np.testing.assert_allclose(found, mean + deviation * z, atol=1e-4)


def test_a_step_without_eta_keeps_the_noise():
    """DDIM: x_s is the x_0 and the noise foreseen, put together anew (Song et al. 2021, eq. 12)."""
    process, x0, noise = Process(100), normal(5), normal(5, seed=1)
    x = process.noised(x0, jnp.full(5, 80), noise)
    found = process.step(x, x0, noise, jnp.int32(80), jnp.int32(30), 0.0, 99 * noise)
    np.testing.assert_allclose(found, process.noised(x0, jnp.full(5, 30), noise), atol=1e-5)
    np.testing.assert_allclose(
        process.step(x, x0, noise, jnp.int32(80), jnp.int32(0), 1.0, 99 * noise), x0, atol=1e-5
    )


def test_steps_are_even_and_end_at_the_data():
    assert timesteps(10, 10).tolist() == list(range(10, -1, -1))
    assert timesteps(1000, 4).tolist() == [1000, 750, 500, 250, 0]
    for wrong in (0, 11):
        with pytest.raises(ValueError, match=rf"num_steps: received {wrong}; allowed: 1 to 10"):
            timesteps(10, wrong)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schedule": "quadratic"}, "schedule: received 'quadratic'; allowed: linear, cosine"),
        ({"first": 0.02, "last": 1e-4}, "the noise must not decrease: first 0.02, last 0.0001"),
        ({"first": 0.0}, "allowed: 0 < first <= last < 1"),
        ({"last": 1.0}, "allowed: 0 < first <= last < 1"),
        ({"num_steps": 0}, "num_steps must be at least 1, received 0"),
    ],
)
def test_a_schedule_that_is_none_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        Process(**changes)


# -- the samplers, with the best denoiser there is ---------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Best:
    """Stands for a network: what the noise of a mixture is on the average, in closed form."""

    density_name: str
    process: Process
    num_classes: int = 0

    def apply(self, variables, x, t, label=None, train=False, rngs=None):
        density = points.mixture(self.density_name)
        signals = self.process.signal
        choices = [
            lambda x, a=float(a): (x - np.sqrt(a) * density.denoised(x, a)) / np.sqrt(max(1 - a, 1e-6))
            for a in signals
        ]
        return jax.lax.switch(t[0], choices, x)


@pytest.mark.parametrize(("sampler", "num_steps"), [(1.0, 40), (0.0, 40), (0.5, 20)])
def test_samplers_draw_from_the_density_when_the_denoiser_is_the_best(sampler, num_steps):
    process = Process(40, first=0.002, last=0.35)
    task = Diffusion(Best("three", process), process)
    density = points.mixture("three")
    drawn = task.draw({}, jax.random.key(0), (2000, 1), num_steps, sampler)
    true, other = (density.draw(jax.random.key(seed), 2000) for seed in (1, 2))
    assert energy.distance(drawn, true) < energy.distance(true, other) + 0.01
    wrong = energy.distance(drawn + 0.3, true)
    assert wrong > 0.03, "the statistic would see a density moved by 0.3"


def test_data_foreseen_stay_within_their_bound():
    process = Process(40, first=0.002, last=0.35)
    task = Diffusion(Best("three", process), process)
    x, (noisy, foreseen) = task.draw({}, jax.random.key(0), (100, 1), 10, 1.0, bound=0.75, trace=True)
    assert abs(x).max() <= 0.75 and abs(foreseen).max() == 0.75
    assert noisy.shape == foreseen.shape == (10, 100, 1) and noisy[0].std() > 0.8, "it begins with noise"


def test_mixtures_are_known_in_closed_form():
    """The density sums to 1 and is that of what is drawn; the best denoiser is the mean of what was noised."""
    density = points.mixture("three")
    places = jnp.linspace(-6, 6, 2001)[:, None]
    np.testing.assert_allclose(np.trapezoid(density.density(places), places[:, 0]), 1, atol=1e-4)
    drawn = np.asarray(density.draw(jax.random.key(0), 200_000))[:, 0]
    heights, edges = np.histogram(drawn, 30, (-3, 3), density=False)
    middles = jnp.asarray((edges[1:] + edges[:-1]) / 2)[:, None]
    np.testing.assert_allclose(heights / 200_000 / 0.2, density.density(middles), atol=0.02)
    signal = 0.6
    noised = np.sqrt(signal) * drawn + np.sqrt(1 - signal) * np.asarray(normal(200_000, seed=3))
    for place in (-1.0, 0.0, 1.0):
        near = np.abs(noised - place) < 0.02
        best = density.denoised(jnp.array([[place]]), signal)[0, 0]
        np.testing.assert_allclose(best, drawn[near].mean(), atol=0.05)
    for name in points.NAMES:
        density = points.mixture(name)
        assert abs(density.draw(jax.random.key(1), 5000)).max() < density.reach
    with pytest.raises(ValueError, match="unknown density 'cat'; allowed: three, ring, spiral, moons"):
        points.mixture("cat")


# -- the network, the loss, guidance -----------------------------------------------------------------


def conditional(predict="eps", classes=4):
    process = Process(30, first=0.01, last=0.3)
    model = Denoiser(PointNetwork(2, 16, 1), 30, classes, 8)
    task = Diffusion(model, process, predict)
    batch = {"x": normal(6, 2), "label": jnp.arange(6) % max(classes, 1)}
    params, _ = task.init(jax.random.key(0), batch)
    return task, batch, {"params": nn.meta.unbox(params)}


def test_loss_is_the_squared_error_of_the_noise():
    task, batch, variables = conditional()
    loss, _, _ = task.loss(variables["params"], {}, batch, jax.random.key(5), False)
    keys = jax.random.split(jax.random.key(5), 4)
    first = float(jax.random.uniform(keys[0]))
    t = jnp.asarray([1 + int(30 * ((first + place / 6) % 1)) for place in range(6)])
    noise = np.asarray(jax.random.normal(keys[1], (6, 2)))
    a = task.process.signal[np.asarray(t)][:, None]
    x = np.sqrt(a) * batch["x"] + np.sqrt(1 - a) * noise
    errors = (np.asarray(task.model.apply(variables, x, t, batch["label"])) - noise) ** 2
    np.testing.assert_allclose(loss.value, errors.mean(), rtol=1e-5)
    mask = np.array([1, 0, 1, 0, 0, 0], np.float32)
    loss, _, _ = task.loss(variables["params"], {}, {**batch, "mask": mask}, jax.random.key(5), False)
    np.testing.assert_allclose(loss.value, errors[mask == 1].mean(), rtol=1e-5)


def test_every_step_is_as_likely():
    """Those of a batch lie T/B apart; over many batches, and for the first example alone, they are even."""
    task, _, _ = conditional(classes=0)
    seen = []

    class Seer:
        num_classes = 0

        def apply(self, variables, x, t, label, train, rngs):
            seen.append(np.asarray(t))
            return x

    for seed in range(300):
        watched = dataclasses.replace(task, model=Seer())
        watched.loss({}, {}, {"x": jnp.zeros((6, 2))}, jax.random.key(seed), False)
    counts = np.bincount(np.concatenate(seen), minlength=31)
    assert counts[0] == 0 and len(counts) == 31 and 40 <= counts[1:].min() <= counts.max() <= 80
    firsts = np.array([batch[0] for batch in seen])
    assert abs(firsts.mean() - 15.5) < 2 and firsts.min() <= 2 and firsts.max() >= 29
    assert all((np.diff(np.sort(batch)) <= 6).all() for batch in seen)


def test_classes_are_hidden_at_the_rate_asked_for():
    """Hidden always, the loss does not depend on the label; hidden never, it does."""
    task, batch, variables = conditional()
    losses = {}
    for rate in (0.0, 1.0):
        hiding = dataclasses.replace(task, unlabelled=rate)
        for shift in (0, 1):
            other = {**batch, "label": (batch["label"] + shift) % 4}
            mean, _, _ = hiding.loss(variables["params"], {}, other, jax.random.key(5), True)
            losses[rate, shift] = float(mean.value)
    assert losses[1.0, 0] == losses[1.0, 1] and losses[0.0, 0] != losses[0.0, 1]
    mean, _, _ = task.loss(
        variables["params"], {}, {"x": batch["x"], "label": jnp.full(6, 4)}, jax.random.key(5), False
    )
    assert float(mean.value) == losses[1.0, 0], "what is hidden is the class past the last"


@pytest.mark.parametrize("predict", PREDICTIONS)
def test_guidance_is_linear_between_no_class_and_the_class(predict):
    task, batch, variables = conditional(predict)
    x, t, label = batch["x"], jnp.full(6, 9), jnp.asarray(batch["label"])
    none = task.model.apply(variables, x, t)
    plain = task.output(variables, x, t, label, None)
    for guidance in (0.0, 1.0, 2.5):
        found = task.output(variables, x, t, label, guidance)
        np.testing.assert_allclose(found, none + guidance * (plain - none), atol=1e-5)
        # the same of the data foreseen, whatever is predicted
        data = [task.process.split(predict, x, t, y)[0] for y in (found, none, plain)]
        np.testing.assert_allclose(data[0], data[1] + guidance * (data[2] - data[1]), atol=1e-4)
    assert abs(plain - none).max() > 1e-3


class Oracle:
    """Foresees the data, moved by `error`: its output is `error` more than what x_0 it is given."""

    num_classes = 0

    def __init__(self, x0, error):
        self.x0, self.error = x0, error

    def apply(self, variables, x, t, label=None, train=False, rngs=None):
        return self.x0 + self.error


@pytest.mark.parametrize("error", [0.0, 0.01, -0.3])
def test_bound_is_the_sum_over_all_steps(error):
    """Eq. 5 of Ho et al. written out in float64: the divergences of Gaussians by their means and variances."""
    process = Process(6, first=1e-3, last=0.5)
    levels = np.array([[0, 1, 100], [128, 254, 255]] * 300)
    x0 = 2 * levels / 255 - 1
    task = Diffusion(Oracle(jnp.asarray(x0, jnp.float32), error), process, "x0")
    bound = VariationalBound(task)
    mean, metrics, _ = bound.loss(
        {}, {}, {"image": jnp.asarray(levels / 255, jnp.float32)}, jax.random.key(0), False
    )

    a = process.signal.astype(np.float64)
    foreseen = np.clip(x0 + error, -1, 1)
    nats = 0.5 * (a[-1] * x0**2 + (1 - a[-1]) - 1 - np.log(1 - a[-1]))  # KL(q(x_T | x_0) | N(0, 1))
    for t in range(2, 7):
        _, deviation = posterior(process, 0.0, 0.0, t)
        means = [posterior(process, 0.3, x, t)[0] for x in (x0, foreseen)]  # the same x_t in both
        nats = nats + (means[0] - means[1]) ** 2 / (2 * deviation**2)
    level = scipy.stats.norm(foreseen, np.sqrt(1 - a[1]))
    low = np.where(levels == 0, -np.inf, x0 - 1 / 255)
    high = np.where(levels == 255, np.inf, x0 + 1 / 255)
    within = np.where(x0 > foreseen, level.sf(low) - level.sf(high), level.cdf(high) - level.cdf(low))
    nats = nats - np.log(np.maximum(within, 1e-30))
    np.testing.assert_allclose(mean.value, nats.sum(1).mean(), rtol=1e-2)
    np.testing.assert_allclose(metrics["bits_per_dim"].value, mean.value / 3 / np.log(2), rtol=1e-5)


def test_a_model_without_classes_takes_no_label():
    task, batch, variables = conditional(classes=0)
    one = task.loss(variables["params"], {}, batch, jax.random.key(0), True)[0].value
    assert one == task.loss(variables["params"], {}, {"x": batch["x"]}, jax.random.key(0), True)[0].value


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"predict": "noise"}, "predict: received 'noise'; allowed: eps, x0, v"),
        ({"unlabelled": 1.5}, "unlabelled must be from 0 to 1, received 1.5"),
    ],
)
def test_what_the_objective_refuses(changes, said):
    task, _, _ = conditional()
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(task, **changes)


# -- the U-Net ---------------------------------------------------------------------------------------


def test_unet_keeps_the_size_sees_the_condition_and_every_pixel():
    net = UNet(3, (8, 8), attention=2)
    x, condition = normal(2, 4, 4), normal(2, 5)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, condition)
    # drawn, and not made by `init`: the branches begin at 0, where nothing of the condition passes
    variables = jax.tree.map(lambda leaf: 0.3 * normal(*leaf.shape), nn.meta.unbox(shapes))

    @jax.jit
    def of(x, condition):
        def pixel(x):
            y = net.apply(variables, x, condition)
            return y[0, 0, 0, 0], y

        return jax.grad(pixel, has_aux=True)(x)

    slope, y = of(x, condition)
    assert y.shape == (2, 4, 4, 3)
    assert abs(y - of(x, condition + 1)[1]).max() > 1e-3
    assert (slope[0] != 0).all(), "attention lets each pixel see all"
    assert (slope[1] == 0).all(), "and no other image"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"features": (8, 12)}, r"features must be multiples of 8, received \(8, 12\)"),
        ({"features": ()}, r"features must be multiples of 8, received \(\)"),
        ({"attention": 3}, "attention: received 3 heads; allowed: 0, or a divisor of 16"),
        ({"patch": 0}, "patch must be at least 1, received 0"),
    ],
)
def test_a_unet_that_is_none_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        UNet(**{"channels": 1, "features": (8, 16), **changes})


def test_images_that_cannot_be_halved_are_refused():
    net = UNet(1, (8, 8, 8))
    with pytest.raises(ValueError, match="images must be a multiple of 4 high and wide, received 6 x 8"):
        net.init(jax.random.key(0), jnp.zeros((1, 6, 8)))


# -- the sampler of the experiment -------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    """(the sampler, variables) of the experiment's demo, untrained."""
    from lmlab import config as configs
    from lmlab.experiment import Assets

    spec = f"{EXPERIMENTS}/diffusion.py:demo"
    config, module = configs.load(spec, {"model.features": (8,), "process.num_steps": 20})
    built = module.build(config, Assets())
    params, _ = jax.jit(built.task.init)(jax.random.key(0), {"image": jnp.zeros((1, 8, 8))})
    return built.sample, {"params": nn.meta.unbox(params)}


def test_samples_by_class_and_frames(digits):
    sample, variables = digits
    drawn = sample(variables, jax.random.key(0), num_samples=12, num_steps=5, frames=3)
    assert drawn.images.shape == (12, 8, 8) and drawn.images.min() >= 0 and drawn.images.max() <= 1
    assert drawn.arrays["label"].tolist() == [*range(10), 0, 1]
    assert drawn.frames.shape == (3, 12, 8, 8)
    np.testing.assert_array_equal(drawn.frames[-1], drawn.images)
    assert set(sample(variables, jax.random.key(0), num_samples=3, num_steps=5, label=7).arrays["label"]) == {
        7
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"label": 10}, "label must be from 0 to 9, or -1 for each in turn; received 10"),
        ({"sampler": "euler"}, "sampler: received 'euler'; allowed: ddpm, ddim"),
        ({"num_steps": 21}, "num_steps: received 21; allowed: 1 to 20"),
        ({"guidance": -1.0}, "guidance: received -1.0; allowed: 0 or more"),
        ({"num_samples": 0}, "num_samples must be at least 1, received 0"),
        ({"num_steps": 5, "frames": 6}, "frames: received 6; allowed: 0 to 5, the steps"),
    ],
)
def test_what_the_sampler_refuses(digits, options, said):
    sample, variables = digits
    with pytest.raises(ValueError, match=said):
        sample(variables, jax.random.key(0), **options)


def test_points_know_no_classes():
    from lmlab import config as configs
    from lmlab.experiment import Assets

    config, module = configs.load(f"{EXPERIMENTS}/diffusion.py:points2d,demo")
    sample = module.build(config, Assets()).sample
    for options in ({"label": 3}, {"guidance": 2.0}):
        with pytest.raises(ValueError, match="the model knows no classes: received label"):
            sample({}, jax.random.key(0), **options)
