"""What came before recurrent networks: a hidden Markov model of characters, and the Kalman filter of a moving point.

Rabiner 1989: EM (Baum et al. 1970) finds the transitions between hidden states and the characters that each emits.
On letters alone two states come to part vowels and consonants (Cave and Neuwirth 1980). Kalman 1960 and Rauch, Tung
and Striebel 1965 are the same two passes for a state that is a vector; here the two scales of noise are found by the
likelihood of tracks that were generated.

    lmlab train --config=experiments/state_space_baselines.py:demo --workdir=runs/hmm-demo
    lmlab train --config=experiments/state_space_baselines.py:hmm,cpu --workdir=runs/hmm      # needs tiny shakespeare
    lmlab train --config=experiments/state_space_baselines.py:letters,cpu --workdir=runs/letters
    lmlab train --config=experiments/state_space_baselines.py:kalman --workdir=runs/kalman    # generated
    lmlab sample --workdir=runs/hmm --prompt="The "
    lmlab figures --workdir=runs/letters      # log-likelihood, emissions, the states along a sentence
    lmlab train --config=experiments/recurrent_lm.py:rnn,cpu --workdir=runs/rnn      # beside it: the same windows

hmm: validation/bits_per_token is that of recurrent_lm.py: the last tenth of the text, windows of 64 predictions, each
with an empty memory but for its first character. EM may never lower the log-likelihood of the training text;
fit/largest_fall says by how much it did, in nats a character, and fit/monotone is 1 where that is below 1e-6, the
rounding of float32. demo: seconds. cpu, the default: two minutes on one core.
"""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from lmlab import config as configs
from lmlab.data import text
from lmlab.data.corpus import Corpus
from lmlab.data.tokenizers import CharTokenizer
from lmlab.decoding.text import text_sampler
from lmlab.evaluation.likelihood import Likelihood
from lmlab.experiment import Experiment, Target
from lmlab.figures import style
from lmlab.models.hmm import HMM, posterior, viterbi
from lmlab.models.kalman import filtered, moving, smoothed
from lmlab.sources import Resident

FAMILY, PAPER = "state space", "Rabiner 1989; Kalman 1960; Rauch, Tung and Striebel 1965"
VARIANTS = {
    "demo": "the Python reference, which every Python carries, 8 states; 20 short tracks: seconds",
    "cpu": "tiny shakespeare, 32 states: the same as no variant",
    "hmm": "a hidden Markov model of characters (the default)",
    "letters": "the same of small letters and spaces, with two states",
    "kalman": "a point that moves in the plane, seen with noise",
}
RISES = "Baum et al. 1970: EM never lowers the likelihood"
TARGETS = {
    "hmm,cpu": [Target("fit/monotone", 1.0, math.nan, RISES, higher_is_better=True)],
    "letters,cpu": [Target("fit/monotone", 1.0, math.nan, RISES, higher_is_better=True)],
    "kalman,cpu": [
        Target("test/filter_over_seen", 1.0, math.nan, "the filter is nearer to the truth than what is seen"),
        Target("test/smoother_over_filter", 1.0, math.nan, "and the smoother nearer than the filter"),
    ],
}
KINDS = ("hmm", "kalman")
SENTENCE = "the leaves as the weather turned cold fell silently from the trees"
ROUNDING = 1e-6
MOST = 64  # characters of a figure, the most frequent


def get_config(variant=""):
    parts = variant.split(",")
    config = configs.base(
        kind="kalman" if "kalman" in parts else "hmm",
        iterations=60,
        restarts=1,  # of EM
        model={"states": 32, "smoothing": 1e-6},
        data={"path": "text/tinyshakespeare.txt", "context": 64, "letters": False},
        tracks={"number": 200, "length": 100, "acceleration": 0.2, "observation": 2.0},
    )
    if "letters" in parts:
        config.data.letters = True
        config.model.states = 2
        config.restarts = 8
    if "kalman" in parts:
        config.iterations = 20
    if "demo" in parts:
        config.data.path = ""
        config.iterations = 10 if "kalman" in parts else 20
        config.model.states = min(8, config.model.states)
        config.tracks.update(number=20, length=50)
        if "letters" in parts:
            config.update(iterations=60, restarts=4)
    return config


def build(config, assets):
    if config.kind not in KINDS:
        raise ValueError(f"kind: received {config.kind!r}; allowed: {', '.join(KINDS)}")
    return markov(config, assets) if config.kind == "hmm" else tracked(config)


# -- the hidden Markov model -------------------------------------------------------------------------


def markov(config, assets):
    corpus, context = opened(config, assets), config.data.context
    tokenizer = corpus.tokenizer
    model = HMM(config.model.states, tokenizer.vocab_size)
    if config.restarts < 1:
        raise ValueError(f"restarts must be at least 1, received {config.restarts}")

    def fit(source, key):
        """EM from several beginnings, of which the one that comes highest is kept: it climbs to the nearest top."""
        tokens = np.asarray(source.data["tokens"])
        tries = (
            model.fit(tokens, each, config.iterations, config.model.smoothing)
            for each in jax.random.split(key, config.restarts)
        )
        return max(tries, key=lambda params: float(params["log_likelihood"][-1]))

    def ids(part):
        return tokenizer.encode(letters(corpus.pieces[part]) if config.data.letters else corpus.pieces[part])

    def source():
        tokens = ids("train")
        count = len(tokens) // context
        if context < 2 or not count:
            raise ValueError(
                f"data.context: received {context}; allowed: from 2 to {len(tokens)}, all of the training text"
            )
        rows = jnp.asarray(tokens[: count * context].reshape(count, context))
        return Resident(data={"tokens": rows}, num_examples=count, batch_size=count, seed=config.seed)

    return Experiment(
        fit=fit,
        train_data=source,
        evaluations={
            "fit": Rise(),
            "validation": Likelihood(
                model, lambda: text.evaluation_windows(ids("validation"), context), 256, bits=True
            ),
        },
        sample=text_sampler(model, tokenizer),
        show=text.show_text(tokenizer),
    )


def opened(config, assets) -> Corpus:
    train = CharTokenizer.train
    return Corpus(
        config.data.path,
        assets,
        train_tokenizer=(lambda text: train(letters(text))) if config.data.letters else train,
    )


def letters(text):
    """Small letters, with one space for what stands between them."""
    return re.sub("[^a-z]+", " ", text.lower())


@dataclasses.dataclass
class Rise:
    """Whether the log-likelihood that a fit kept by iteration only rises. loss: minus its last value."""

    held_out: bool = False

    def __call__(self, variables, key):
        kept = np.asarray(variables["params"]["log_likelihood"], np.float64)
        fall = max(0.0, float(-np.diff(kept).min(initial=0.0)))
        return {"loss": -kept[-1], "largest_fall": fall, "monotone": float(fall < ROUNDING)}, {}


# -- the moving point --------------------------------------------------------------------------------


def tracked(config):
    options = config.tracks
    for name in ("number", "length"):
        if options[name] < 2:
            raise ValueError(f"tracks.{name} must be at least 2, received {options[name]}")
    for name in ("acceleration", "observation"):
        if not options[name] > 0:
            raise ValueError(f"tracks.{name} must be above 0, received {options[name]}")

    @functools.cache
    def tracks(part):
        """{"truth": (N, T, 2), "seen": (N, T, 2)}."""
        seed = (config.seed, ("train", "validation", "test").index(part))
        states, seen = moving(options.acceleration, options.observation).draw(
            seed, options.number, options.length
        )
        return {"truth": states[..., :2].astype(np.float32), "seen": seen.astype(np.float32)}

    def source():
        data = jax.tree.map(jnp.asarray, tracks("train"))
        return Resident(data=data, num_examples=options.number, batch_size=options.number, seed=config.seed)

    return Experiment(
        fit=lambda source, key: likeliest(source.data["seen"], config.iterations),
        train_data=source,
        evaluations={
            "fit": Rise(),
            "validation": Tracking(functools.partial(tracks, "validation")),
            "test": Tracking(functools.partial(tracks, "test"), held_out=True),
        },
    )


def noise(params):
    """The model of the two scales of noise that `params` hold the logarithms of."""
    return moving(jnp.exp(params["log_acceleration"]), jnp.exp(params["log_observation"]))


def likeliest(seen, iterations):
    """The scales of noise under which the tracks are likeliest, by BFGS from 1 and 1, and how it came to them."""
    names = ("log_acceleration", "log_observation")

    @jax.jit
    def loss(scales):
        model = noise(dict(zip(names, scales, strict=True)))
        return -jax.vmap(lambda x: filtered(model, x).log_likelihood.mean())(seen).mean()

    slope, begin = jax.jit(jax.grad(loss)), np.zeros(len(names), np.float32)
    kept = [-float(loss(begin))]
    found = scipy.optimize.minimize(
        lambda scales: float(loss(jnp.asarray(scales, jnp.float32))),
        begin,
        jac=lambda scales: np.asarray(slope(jnp.asarray(scales, jnp.float32)), np.float64),
        method="BFGS",
        callback=lambda intermediate_result: kept.append(-intermediate_result.fun),
        options={"maxiter": iterations, "gtol": 1e-5},
    )
    scales = dict(zip(names, jnp.asarray(found.x, jnp.float32), strict=True))
    return {**scales, "log_likelihood": jnp.asarray(kept, jnp.float32)}


@dataclasses.dataclass
class Tracking:
    """How far from the truth what is seen, the filter and the smoother are: roots of mean squares in the plane.

    loss: minus the log-likelihood of an observation. *_within: the share of true places inside the ellipse
    that should hold 95 % of them. acceleration, observation: the scales of noise that were found.
    """

    data: functools.partial
    held_out: bool = False

    def __call__(self, variables, key):
        tracks, model = self.data(), noise(variables["params"])
        truth = jnp.asarray(tracks["truth"])
        found = jax.vmap(lambda x: passes(model, x))(jnp.asarray(tracks["seen"]))
        scalars = {"loss": -found["log_likelihood"].mean()}
        apart = {"seen": jnp.asarray(tracks["seen"]) - truth}
        for name in ("filter", "smoother"):
            mean, cov = found[name]
            apart[name] = mean - truth
            distance = jnp.einsum("nti,ntij,ntj->nt", apart[name], jnp.linalg.inv(cov), apart[name])
            scalars[f"{name}_within"] = jnp.mean(distance < -2 * math.log(0.05))  # of chi squared, 2 degrees
        rms = {name: jnp.sqrt(jnp.mean(jnp.sum(gap**2, -1))) for name, gap in apart.items()}
        scalars |= {f"{name}_rms": value for name, value in rms.items()}
        scalars["filter_over_seen"] = rms["filter"] / rms["seen"]
        scalars["smoother_over_filter"] = rms["smoother"] / rms["filter"]
        scalars |= {
            name: jnp.exp(variables["params"][f"log_{name}"]) for name in ("acceleration", "observation")
        }
        first = jax.tree.map(lambda leaf: leaf[0], found)
        arrays = {"truth": truth[0], "seen": tracks["seen"][0]}
        for name in ("filter", "smoother"):
            arrays |= {f"{name}_mean": first[name][0], f"{name}_cov": first[name][1]}
        return scalars, arrays


def passes(model, x):
    """(means, covariances) of the place by both passes over one track."""
    seen = filtered(model, x)
    mean, cov = smoothed(model, seen)
    return {
        "filter": (seen.mean[:, :2], seen.cov[:, :2, :2]),
        "smoother": (mean[:, :2], cov[:, :2, :2]),
        "log_likelihood": seen.log_likelihood,
    }


# -- figures -----------------------------------------------------------------------------------------


def figures(runs):
    """Of one run, or of several of one kind: the log-likelihood by iteration; of one also what it found."""
    drawn = {"log_likelihood": log_likelihood(runs)}
    if len(runs) == 1 and runs[0].config.kind == "kalman":
        drawn["track"] = track(runs[0].arrays("validation"))
    elif len(runs) == 1:
        drawn["emissions"] = emissions(runs[0])
        drawn["states"] = states(runs[0])
    return drawn


def log_likelihood(runs):
    figure, axes = style.new()
    for run in runs:
        kept = np.asarray(run.variables["params"]["log_likelihood"])
        axes.plot(np.arange(len(kept)), kept, label=run.name)
    unit = "an observation" if runs[0].config.kind == "kalman" else "a character"
    axes.set(xlabel="iteration", ylabel=f"log-likelihood, nats {unit}")
    if len(runs) > 1:
        axes.legend()
    return figure


def emissions(run):
    """P(character | state), and how often each state is visited; characters by the state that they speak for."""
    params = jax.device_get(run.variables["params"])
    names = list(opened(run.config, run.assets).tokenizer.characters)
    emission, share = params["emission"], stationary(params["transition"])
    joint = emission * share[:, None]
    kept = np.sort(np.argsort(-joint.sum(0), kind="stable")[:MOST])
    order = kept[np.lexsort((-joint[:, kept].max(0), joint[:, kept].argmax(0)))]
    width = min(style.PAGE, 1.6 + 0.13 * len(order))
    figure, axes = style.new(width=width, height=1.2 + 0.12 * max(4, len(share)))
    image = axes.imshow(np.sqrt(emission[:, order]), vmin=0, cmap="Blues", aspect="auto")
    axes.set_xticks(range(len(order)), [style.visible(names[i]) for i in order], fontsize=6, parse_math=False)
    every = max(1, len(share) // 16)
    axes.set_yticks(
        range(0, len(share), every), [f"{k + 1}: {share[k]:.0%}" for k in range(0, len(share), every)]
    )
    axes.set(xlabel="character", ylabel="state: how often")
    style.colorbar(figure, image, axes, "root of probability")
    return figure


def stationary(transition):
    """The share of time in each state, after long."""
    share = np.full(len(transition), 1 / len(transition))
    for _ in range(1000):
        share = share @ transition
    return share / share.sum()


def states(run):
    """P(state | all of a sentence) for each character, and the likeliest path."""
    params, tokenizer = run.variables["params"], opened(run.config, run.assets).tokenizer
    known = [character for character in SENTENCE if character in tokenizer.characters]
    ids = jnp.asarray(tokenizer.encode("".join(known)))
    gamma, path = np.asarray(posterior(params, ids[None])[0]), np.asarray(viterbi(params, ids)[0])
    count = gamma.shape[1]
    figure, axes = style.new(width=style.PAGE, height=1.0 + 0.06 * max(10, count))
    image = axes.imshow(gamma.T, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axes.plot(range(len(path)), path, "o", color=style.COLORS[1], markersize=2.5, label="likeliest path")
    style.label_tokens(axes.xaxis, known, style.PAGE - 1.5)
    axes.set_yticks(
        range(0, count, max(1, count // 16)), [k + 1 for k in range(0, count, max(1, count // 16))]
    )
    axes.set(xlabel="character", ylabel="state")
    style.colorbar(figure, image, axes, "probability")
    figure.legend(loc="outside upper right", fontsize=style.SIZE - 1, frameon=False)
    return figure


def track(arrays):
    """A track of the validation part: the way in the plane, and the error of x with bands of two deviations."""
    figure, axes = style.new(1, 2, width=style.PAGE, height=3.4)
    plane, error = axes[0]
    truth = arrays["truth"]
    plane.plot(*arrays["seen"].T, ".", color="0.7", label="seen")
    plane.plot(*truth.T, color=style.COLORS[4], linestyle="-", label="truth")
    times = np.arange(len(truth))
    for number, name in enumerate(("filter", "smoother")):
        mean, cov, color = arrays[f"{name}_mean"], arrays[f"{name}_cov"], style.COLORS[number]
        plane.plot(*mean.T, color=color, linestyle=style.LINES[number + 1], label=name)
        for at in times[:: max(1, len(times) // 8)]:
            plane.plot(*ellipse(mean[at], cov[at]), color=color, linewidth=0.6, linestyle="-", label="_")
        gap, wide = mean[:, 0] - truth[:, 0], 2 * np.sqrt(cov[:, 0, 0])
        error.plot(times, gap, color=color, linestyle=style.LINES[number], label=name)
        error.fill_between(times, -wide, wide, color=color, alpha=0.15, linewidth=0, label=f"_{name}, band")
    plane.set(xlabel="x", ylabel="y")
    plane.set_aspect("equal", adjustable="datalim")
    error.set(xlabel="time", ylabel="error of x, bands of two deviations")
    plane.legend()
    error.legend()
    return figure


def ellipse(mean, cov, inside=0.95):
    """(x, y) of the line around a share of a Gaussian."""
    angle = np.linspace(0, 2 * np.pi, 60)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    return mean[:, None] + np.linalg.cholesky(cov) @ circle * math.sqrt(-2 * math.log(1 - inside))
