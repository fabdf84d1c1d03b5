"""lmlab: sequence and generative models in JAX and Flax; a paper is one file.

>>> run = lmlab.train("experiments/gpt_char.py:demo", "runs/demo", {"seed": 1})
>>> run = lmlab.load("runs/demo")
>>> run.sample(prompt="The ").texts[0]
>>> run.metrics()
"""

__version__ = "0.1.0"


def load(folder):
    """The run in a directory: its config, variables, metrics, samples and figures."""
    from lmlab.run import Run

    return Run(folder)


def train(experiment, workdir, overrides=None, *, wandb=""):
    """Trains "experiments/NAME.py:VARIANT" in `workdir` with overrides by dotted key; returns the run."""
    from lmlab.run import train

    return train(experiment, workdir, overrides, wandb=wandb)
