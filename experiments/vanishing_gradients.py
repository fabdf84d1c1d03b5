"""How far back a gradient reaches, and what that decides: the adding problem and the copying problem.

Bengio et al. 1994 and Pascanu et al. 2013: the Jacobian of the last state by an earlier one, dh_T / ds_t, is a product
of T - t matrices, which vanishes or explodes with T - t. It is drawn for each cell, as it begins and as it is trained:
the Frobenius norm over sqrt(H), where s is all that the cell carries, c of the LSTM with it. The problems are those of
Hochreiter and Schmidhuber 1997: to add the two of T numbers that are marked (who always says 1 has a squared error of
0.167), and to repeat 10 symbols after T blanks (who guesses, ln 8 = 2.079 nats).

    lmlab train --config=experiments/vanishing_gradients.py:gru,demo --workdir=runs/gradients-demo
    lmlab sweep --config=experiments/vanishing_gradients.py --workdir=sweeps/gradients       # T = 100
    lmlab sweep --config=experiments/vanishing_gradients.py:long --workdir=sweeps/gradients-200
    lmlab figures --workdir=sweeps/gradients     # norms against T - t, the loss, the gradient's norm before clipping

Bar: at T = 100 and 200 the gated cells end below 0.05 in each of three seeds, the plain one in none. `no_forget_bias`
shows what the LSTM is without: its gate begins at 1/2, and 2^-100 is what is left of a cell after 100 steps.

demo: seconds, T = 30. cpu, the default: half a minute a run on one core, a minute with `long`. All data are generated.
"""

import functools
import math

import jax
import numpy as np

from lmlab import config as configs
from lmlab.data import recall
from lmlab.evaluation.jacobian import log_norms
from lmlab.evaluation.likelihood import Likelihood
from lmlab.experiment import Experiment, Samples, Target
from lmlab.figures import curves, style
from lmlab.layers.recurrent import state_of
from lmlab.models.recall import Reader, Recall
from lmlab.training import optimizer

FAMILY, PAPER = "recurrent", "Bengio et al. 1994; Hochreiter and Schmidhuber 1997; Pascanu et al. 2013"
VARIANTS = {
    "demo": "T = 30, 500 steps: seconds",
    "cpu": "T = 100, 2,000 steps: the same as no variant",
    "adding": "the sum of two marked numbers (the default)",
    "copying": "ten symbols repeated after T blanks",
    "long": "T = 200",
    "rnn": "plain recurrent cells",
    "gru": "gated recurrent units, reset gate outside the linear map (the default)",
    "gru_inside": "gated recurrent units, reset gate inside the linear map",
    "lstm": "long short-term memory, its forget bias 1",
    "no_forget_bias": "forget bias 0: with lstm",
    "unclipped": "the gradient is not clipped",
}
NAMES = {"rnn": "RNN", "gru": "GRU", "gru_inside": "GRU, reset inside", "lstm": "LSTM"}
SOLVED, CLAIM = 0.05, "Hochreiter and Schmidhuber 1997, experiment 4: solved up to T = 1,000"
TARGETS = {
    f"{cell}{length}": [Target("test/loss", SOLVED, math.nan, CLAIM, higher_is_better=cell == "rnn")]
    for cell in NAMES
    for length in ("", ",long")
}
TASKS = {"adding": (recall.adding, 1, 1), "copying": (recall.copying, recall.SYMBOLS, recall.COPIED)}
"""What draws an example, how many numbers are said at a time, and how many times."""


def get_config(variant=""):
    parts = variant.split(",")
    config = configs.base(
        duration="2000 steps",
        evaluate_every="5 %",
        checkpoint={"every": "50 %"},
        model={
            "cell": next((cell for cell in NAMES if cell in parts), "gru"),
            "d_model": 64,
            "forget_bias": 0.0 if "no_forget_bias" in parts else 1.0,
        },
        data={"task": "copying" if "copying" in parts else "adding", "length": 100},
        optimizer={
            "learning_rate": 3e-3,
            "schedule": "cosine",
            "warmup": "2 %",
            "final": 0.1,
            "clip": 0.0 if "unclipped" in parts else 1.0,
        },
    )
    if "long" in parts:
        config.data.length = 200
    if "demo" in parts:
        config.duration = "500 steps"
        config.data.length = 60 if "long" in parts else 30
        config.model.d_model = 32
    return config


def build(config, assets):
    if config.data.task not in TASKS:
        raise ValueError(f"data.task: received {config.data.task!r}; allowed: {', '.join(TASKS)}")
    draw, outputs, reads = TASKS[config.data.task]
    length = config.data.length
    jax.eval_shape(lambda key: draw(key, length), jax.random.key(0))  # a length that is too short
    model = Reader(outputs, reads, **config.model)
    task = Recall(model)

    def likelihood(seed, held_out):
        data = functools.partial(recall.fixed, draw, length, 2000, seed)
        return Likelihood(task, data, 200, held_out=held_out)

    return Experiment(
        task=task,
        optimizer=functools.partial(optimizer.build, **config.optimizer),
        train_data=lambda: recall.fresh(draw, length, config.batch_size, config.seed),
        evaluations={
            "validation": likelihood(1, False),
            "jacobian": Jacobian(model, functools.partial(recall.fixed, draw, length, 8, 3)),
            "test": likelihood(2, True),
        },
        show=show,
        dynamic=("optimizer.learning_rate", "optimizer.weight_decay"),
    )


def show(batch):
    """The numbers or symbols of each example, and its target."""
    texts = []
    for inputs, target in zip(np.asarray(batch["inputs"]), np.asarray(batch["target"]), strict=True):
        if inputs.shape[1] == 2:
            read = " ".join(f"{number:.2f}{'*' * int(marker)}" for number, marker in inputs)
            texts.append(f"{read} -> {target:.2f}")
        else:
            read = "".join("01234567.:"[i] for i in inputs.argmax(1))
            texts.append(f"{read} -> {''.join(map(str, target))}")
    return Samples(texts=texts)


class Jacobian:
    """log10 of || dh_T / ds_t ||_F / sqrt(H), the mean over some examples: `log10_norm` at t = 0, an array for all t.

    The scalar ends at -100: of what no number of 32 bits holds it matters little how small it is.
    """

    held_out = False

    def __init__(self, model, data):
        self.model, self.data = model, data

    def __call__(self, variables, key):
        norms = np.asarray(self._run(variables["params"])).mean(1) / math.log(10)
        return {"log10_norm": max(float(norms[0]), -100.0)}, {"log10_norms": norms}

    @functools.cached_property
    def _run(self):
        inputs = self.data()["inputs"].swapaxes(0, 1)
        model = self.model

        @jax.jit
        def run(params):
            advance = functools.partial(model.advance, {"params": params})
            return log_norms(advance, lambda state: state_of(state[0]), model.start(inputs.shape[1]), inputs)

        return run


def sweep():
    for variant in ("rnn", "gru", "gru_inside", "lstm", "lstm,no_forget_bias", "rnn,unclipped"):
        for seed in range(3):
            yield {"variant": variant, "seed": seed}


# -- figures -----------------------------------------------------------------------------------------


def figures(runs):
    options = {"label": label, "wide": len(runs) > 1}
    return {
        "jacobian": jacobians(runs),
        "loss": curves.loss(runs, ("validation/loss",), ylabel="validation loss", **options),
        "gradient": curves.loss(
            runs, ("train/grad_norm",), ylabel="norm of the gradient, before clipping", **options
        ),
    }


def label(run):
    config = run.config
    bias = f", forget bias {config.model.forget_bias:g}" * (config.model.cell == "lstm")
    return f"{NAMES[config.model.cell]}{bias}{', not clipped' * (config.optimizer.clip == 0)}"


def jacobians(runs):
    """The norm against T - t before training and after it, the mean over seeds."""
    figure, axes = style.new(1, 2, height=2.9)
    groups = {}
    for run in runs:
        groups.setdefault(label(run), []).append(run)
    ends = []
    for (name, members), color, line in zip(groups.items(), style.COLORS, style.LINES, strict=False):
        for one, norms in zip(axes[0], (begun, trained), strict=True):
            mean = np.mean([norms(run) for run in members], axis=0)[::-1]
            one.plot(np.arange(len(mean)), mean, color=color, linestyle=line, label=name)
            ends.append(mean.min())
    low = max(min(ends), -40.0)
    for one, title in zip(axes[0], ("as it begins", "trained"), strict=True):
        one.set(xlabel="steps back, T - t", title=title, ylim=(1.05 * low - 0.5, None))
    axes[0, 0].set_ylabel("log10 of |dh(T) / ds(t)|")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=style.SIZE - 1
    )
    return figure


def begun(run):
    """log10 of the norms with the parameters as the run drew them."""
    from lmlab.training.loop import Keys

    experiment = run.experiment
    batch = experiment.train_data().example()
    params, _ = jax.jit(experiment.task.init)(Keys.of(run.config).init, batch)
    return experiment.evaluations["jacobian"]({"params": params}, None)[1]["log10_norms"]


def trained(run):
    return run.arrays("jacobian")["log10_norms"]
