"""Exactly N updates; a run cut and resumed is the run never cut; what stops a run."""

import json
import math
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab.experiment import Mean
from lmlab.training import loop
from lmlab.training.checkpoint import Checkpoints
from lmlab.training.loop import Stopped, Trainer
from lmlab.training.record import NotFinite
from tests.training import toys


def run(folder, kind="plain", duration="6 steps", **leaves):
    """Trains a toy in `folder`, on or from where it stands; returns its final state."""
    config = toys.config(duration=duration, **leaves)
    return jax.device_get(Trainer(toys.KINDS[kind](config), config).run(folder))


def rows(folder):
    """metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds" and not k.startswith("speed/")} for row in lines]


def equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("kind", [kind for kind in toys.KINDS if kind != "plain64"])
def test_cut_and_resumed_equals_straight_through(tmp_path, kind):
    """Bitwise, with the metrics, the cut falling inside a log interval (every 3 steps)."""
    straight = run(tmp_path / "straight", kind)
    run(tmp_path / "cut", kind, "4 steps")
    resumed = run(tmp_path / "cut", kind)
    equal(straight, resumed)
    assert int(resumed.step) == 6
    ends = [row for row in rows(tmp_path / "cut") if row["step"] != 4]  # the shorter run logged its end
    assert [row["step"] for row in ends] == [row["step"] for row in rows(tmp_path / "straight")]
    last = [row for row in rows(tmp_path / "straight") if row["step"] == 3]
    assert last == [row for row in rows(tmp_path / "cut") if row["step"] == 3]


def test_an_average_of_parameters_resumes_too(tmp_path):
    straight = run(tmp_path / "straight", ema=0.9)
    run(tmp_path / "cut", duration="4 steps", ema=0.9)
    equal(straight, run(tmp_path / "cut", ema=0.9))
    differ = [
        np.abs(a - b).max()
        for a, b in zip(*map(jax.tree.leaves, (straight.ema, straight.params)), strict=True)
    ]
    assert max(differ) > 1e-4


@pytest.mark.parametrize("steps", [1, 5, 7])
def test_exactly_so_many_updates(tmp_path, steps):
    """Counted by what the optimizer was asked to do, not by the loop itself."""
    state = run(tmp_path, duration=f"{steps} steps")
    assert int(state.step) == steps
    assert int(state.opt_state[0].count) == steps


def test_a_finished_run_is_left_alone(tmp_path):
    once = run(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    equal(once, run(tmp_path))
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_the_logged_loss_is_the_mean_over_the_interval(tmp_path):
    """Two examples of known loss: every interval of three batches of the whole set has that mean."""
    config = toys.config(optimizer={"learning_rate": 0.0})
    config.batch_size = 64
    trainer = Trainer(toys.regression(config), config)
    trainer.run(tmp_path)
    data = toys.points()
    state = trainer.layout.create(trainer.make)
    y = toys.MLP().apply({"params": state.params}, data["x"])
    expected = float(jnp.mean((y - data["y"]) ** 2))
    train = [row["train/loss"] for row in rows(tmp_path) if "train/loss" in row]
    np.testing.assert_allclose(train, expected, rtol=1e-5)


def test_rows_say_where_they_are(tmp_path):
    run(tmp_path)
    first = rows(tmp_path)[0]
    assert {"step", "epoch", "examples", "train/loss", "train/grad_norm"} <= first.keys()
    assert first["step"] == 3 and first["examples"] == 24 and first["epoch"] == 3 / 8
    assert [row["step"] for row in rows(tmp_path) if "validation/loss" in row] == [3, 6]
    with np.load(tmp_path / "evaluations/6/validation.npz") as kept:
        assert kept["predictions"].shape == (64, 4)


def test_rows_after_the_checkpoint_are_written_anew(tmp_path):
    """A run killed after logging step 6 and before saving it must not log it twice."""
    run(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "seconds": 1.0, "train/loss": 1.0}\n{"step": 12, "tra')
    run(tmp_path, duration="9 steps")
    steps = [row["step"] for row in rows(tmp_path) if "train/loss" in row]
    assert steps == [3, 6, 9]


class Diverging(toys.Regression):
    """Finite for a while."""

    def loss(self, params, collections, batch, key, train):
        mean, metrics, new = super().loss(params, collections, batch, key, train)
        size = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        return Mean(mean.total + jnp.where(size > self.limit, jnp.nan, 0.0), mean.count), metrics, new

    limit = 45.0  # some 36 at the start


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    config = toys.config(optimizer={"learning_rate": 1.0, "name": "sgd", "b1": 0.0})
    config.duration, config.log_every = "400 steps", "1 step"
    config.checkpoint.every = "1 step"
    experiment = toys.regression(config)
    experiment = type(experiment)(
        task=Diverging(toys.MLP()), optimizer=experiment.optimizer, train_data=experiment.train_data
    )
    with pytest.raises(
        NotFinite, match=r"not finite within steps \d+ to \d+: .*last good checkpoint is that of step"
    ):
        Trainer(experiment, config).run(tmp_path)
    step, variables = Checkpoints(tmp_path / "checkpoints").variables()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
    assert all(math.isfinite(row["train/loss"]) for row in rows(tmp_path))
    assert rows(tmp_path)[-1]["step"] >= step


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_stops(tmp_path, number):
    quiet = {"checkpoint": {"every": "0"}, "evaluate_every": "0", "log_every": "0"}
    config = toys.config(duration="10000000 steps", **quiet)
    timer = threading.Timer(6.0, os.kill, (os.getpid(), number))
    timer.start()
    with pytest.raises(Stopped) as stopped:
        Trainer(toys.regression(config), config).run(tmp_path)
    assert stopped.value.args[0] == number
    step = stopped.value.args[1]
    assert Checkpoints(tmp_path / "checkpoints").steps == [step]
    straight = run(tmp_path / "straight", duration=f"{step} steps", **quiet)
    _, variables = Checkpoints(tmp_path / "checkpoints").variables()
    equal(straight.params, variables["params"])
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # given back


def test_a_closed_form_is_fitted_saved_and_found_again(tmp_path):
    config = toys.config()
    state = Trainer(toys.closed_form(config), config).run(tmp_path)
    data = toys.points()
    np.testing.assert_allclose(data["x"] @ np.asarray(state.params["w"]), data["y"], atol=1e-4)
    again = Trainer(toys.closed_form(config), config).run(tmp_path)
    equal(state.params, again.params)


def test_rollouts_are_drawn_from_the_policy_as_it_learns(tmp_path):
    config = toys.config(optimizer={"learning_rate": 0.2})
    config.batch_size, config.duration, config.log_every = 32, "60 steps", "10 steps"
    Trainer(toys.rollouts(config), config).run(tmp_path)
    rewards = [row["train/reward"] for row in rows(tmp_path)]
    assert rewards[-1] > 3 * rewards[0] and rewards[-1] > 0.5


def test_fine_tuning_starts_from_given_parameters_but_resuming_from_its_own(tmp_path):
    config = toys.config(optimizer={"learning_rate": 0.0})
    experiment = toys.regression(config)

    def tuned(value):
        fields = {name: getattr(experiment, name) for name in ("task", "optimizer", "train_data")}
        return type(experiment)(
            **fields, init_from=lambda params: jax.tree.map(lambda x: jnp.full_like(x, value), params)
        )

    first = Trainer(tuned(0.25), config).run(tmp_path)
    assert all((leaf == 0.25).all() for leaf in jax.tree.leaves(first.params))
    config.duration = "8 steps"
    again = Trainer(tuned(0.75), config).run(tmp_path)
    assert all((leaf == 0.25).all() for leaf in jax.tree.leaves(again.params))


def test_best_must_name_an_evaluation():
    config = toys.config(checkpoint={"best": "valid/loss"})
    with pytest.raises(
        ValueError, match=r"checkpoint.best: received 'valid/loss'; allowed: .*validation/loss"
    ):
        Trainer(toys.regression(config), config)


def test_parameters_that_an_update_broke_are_never_saved(tmp_path):
    """The loss of step 1 is finite, the parameters after it are not."""
    config = toys.config(
        optimizer={"learning_rate": 1e38, "name": "sgd", "b1": 0.0}, checkpoint={"every": "1 step"}
    )
    data = toys.points()
    large = {"x": data["x"], "y": data["y"] * 1e4}  # a gradient of some thousands, times 1e38
    experiment = toys.regression(config, source=lambda config: toys.resident(config, large))
    with pytest.raises(NotFinite, match="within steps 1 to 1: parameters; there is no checkpoint yet"):
        Trainer(experiment, config).run(tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").steps == []


def test_a_signal_on_a_step_to_be_evaluated_does_not_lose_the_evaluation(tmp_path, monkeypatch):
    advance = loop.Progress.advance

    def stop_at_three(self, steps):
        advance(self, steps)
        self.done = getattr(self, "done", 0) + steps
        if self.done == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.Progress, "advance", stop_at_three)
    with pytest.raises(Stopped):
        run(tmp_path)
    monkeypatch.setattr(loop.Progress, "advance", advance)
    run(tmp_path)
    run(tmp_path / "straight")
    assert rows(tmp_path) == rows(tmp_path / "straight")


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 - 1])
def test_keys_are_those_split_off_the_seed(seed):
    keys = loop.Keys.of(toys.config(seed=seed))
    init, step, evaluation = jax.random.split(jax.random.key(seed), 3)
    expected = (init, step, evaluation, jax.random.fold_in(step, 2**31 - 1))
    equal([jax.random.key_data(key) for key in keys], [jax.random.key_data(key) for key in expected])


def test_the_step_is_traced_once(tmp_path):
    """For its shapes, for one program or another: tracing is half of what a start takes."""
    config = toys.config()
    experiment, traced = toys.regression(config), []

    class Counted(toys.Regression):
        def loss(self, *args):
            traced.append(args)
            return super().loss(*args)

    task = Counted(experiment.task.model)
    fields = {"optimizer": experiment.optimizer, "train_data": experiment.train_data}
    Trainer(type(experiment)(task=task, **fields), config).run(tmp_path)
    assert len(traced) == 1


def test_seeds_of_32_bits(tmp_path):
    state = run(tmp_path, duration="2 steps", seed=2**32 - 1)
    assert int(state.step) == 2
