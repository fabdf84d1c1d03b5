import dataclasses
import types

import numpy as np
import pandas as pd
import pytest

from lmlab.figures import curves, table


@dataclasses.dataclass
class Run:
    name: str
    config: dict
    table: pd.DataFrame

    def metrics(self):
        return self.table


def run(seed=0, rate=0.1, loss=(3.0, 2.0, 1.0), validation=(np.nan, 2.5, np.nan), tokens=64):
    steps = np.arange(len(loss)) * 10
    columns = {"step": steps, "seconds": steps * 0.5, "examples": steps * 8, "tokens": steps * tokens}
    losses = {"train/loss": np.array(loss), "validation/loss": np.array(validation)}
    config = {"seed": seed, "optimizer": {"learning_rate": rate}, "model": {"seed": seed}}
    return Run(f"run{seed}", config, pd.DataFrame(columns | losses))


def series(figure, kind="line"):
    found = {}
    for _, k, name, x, y, *_ in table.rows(figure):
        if k == kind:
            found.setdefault(name, []).append((float(x), float(y)))
    return found


def test_one_run_shows_train_and_validation_where_logged():
    figure = curves.loss(run())
    assert series(figure) == {"train/loss": [(0, 3.0), (10, 2.0), (20, 1.0)], "validation/loss": [(10, 2.5)]}
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("updates", "loss")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train/loss", "validation/loss"]
    assert axes.lines[1].get_marker() == "o"  # one point is still seen


@pytest.mark.parametrize(("x", "unit"), [("tokens", 640), ("seconds", 5), ("examples", 80)])
def test_other_axes(x, unit):
    figure = curves.loss(run(), x=x)
    assert [place for place, _ in series(figure)["train/loss"]] == [0, unit, 2 * unit]
    assert figure.axes[0].get_xlabel() == curves.AXES[x]


def test_seeds_of_one_setting_become_a_mean_and_a_band():
    losses = [(3.0, 2.0, 1.0), (3.0, 4.0, 2.0), (3.0, 3.0, 6.0)]
    figure = curves.loss([run(seed, loss=loss) for seed, loss in enumerate(losses)], metrics=("train/loss",))
    mean, deviation = np.mean(losses, axis=0), np.std(losses, axis=0, ddof=1)
    assert np.allclose([y for _, y in series(figure)["train/loss"]], mean)
    low, high = (
        np.maximum(mean - deviation, np.min(losses, 0)),
        np.minimum(mean + deviation, np.max(losses, 0)),
    )
    assert low[2] == 1.0 > mean[2] - deviation[2] and high[2] == mean[2] + deviation[2] < 6.0
    assert np.allclose([y for _, y in series(figure, "band low")["train/loss"]], low)
    assert np.allclose([y for _, y in series(figure, "band high")["train/loss"]], high)
    assert figure.axes[0].get_title() == "3 runs"


def test_groups_are_what_the_configs_differ_in_besides_seeds():
    runs = [run(seed, rate) for rate in (0.1, 0.2) for seed in range(2)]
    figure = curves.loss(runs, metrics=("train/loss",))
    assert list(series(figure)) == ["learning_rate 0.1", "learning_rate 0.2"]
    figure = curves.loss(runs)
    assert "learning_rate 0.2 validation/loss" in series(figure)
    lines = figure.axes[0].lines
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()
    assert lines[0].get_linestyle() == lines[2].get_linestyle() != lines[1].get_linestyle()


def test_groups_by_a_label_of_ones_own():
    runs = [run(seed, rate) for rate in (0.1, 0.2) for seed in range(2)]
    figure = curves.loss(runs, metrics=("train/loss",), label=lambda run: f"seed {run.config['seed']}")
    assert list(series(figure)) == ["seed 0", "seed 1"]


def test_a_group_is_drawn_where_all_its_runs_logged():
    short = run(1, loss=(3.0, 2.0), validation=(np.nan, 2.5))
    figure = curves.loss([run(0), short], metrics=("train/loss",))
    assert [x for x, _ in series(figure)["train/loss"]] == [0, 10]


def test_mistakes_are_one_line():
    with pytest.raises(ValueError, match="received no run"):
        curves.loss([])
    with pytest.raises(ValueError, match="unknown x 'epochs'; allowed: step, tokens"):
        curves.loss(run(), x="epochs")
    with pytest.raises(ValueError, match=r"no run logged train/lss; logged: train/loss, validation/loss"):
        curves.loss(run(), metrics=("train/loss", "train/lss"))
    with pytest.raises(ValueError, match="no 'tokens' was logged"):
        curves.loss(run(tokens=np.nan), x="tokens")
    late = run(1)
    late.table["step"] += 5
    with pytest.raises(ValueError, match=r"^2 runs logged train/loss at no step in common$"):
        curves.loss([run(0), late])


def test_a_run_without_validation_is_drawn():
    assert list(series(curves.loss(run(validation=(np.nan,) * 3)))) == ["train/loss"]


def test_many_groups_on_a_page_are_told_apart():
    figure = curves.loss([run(rate=rate) for rate in range(1, 15)], metrics=("train/loss",), wide=True)
    lines = figure.axes[0].lines
    assert len({(line.get_color(), str(line._unscaled_dash_pattern)) for line in lines}) == 14
    below = [text.get_text() for text in figure.legends[0].get_texts()]
    assert below == [f"learning_rate {rate}" for rate in range(1, 15)] and figure.axes[0].get_legend() is None


@pytest.mark.parametrize(("last", "scale"), [(0.31, "linear"), (0.3, "log"), (0.0, "linear")])
def test_on_a_page_a_decade_is_logarithmic(last, scale):
    figure = curves.loss(run(loss=(3.0, 1.0, last)), metrics=("train/loss",), wide=True)
    assert figure.axes[0].get_yscale() == scale
    assert curves.loss(run(loss=(3.0, 1.0, last))).axes[0].get_yscale() == "linear"


def test_the_best_rate_has_the_lowest_mean_of_the_last_value():
    def one(rate, seed, *losses):
        made = run(seed, rate, validation=losses)
        made.config = types.SimpleNamespace(optimizer=types.SimpleNamespace(learning_rate=rate))
        return made

    low = [one(0.1, 0, 9.0, 3.0, 1.2), one(0.1, 1, 9.0, 3.0, 1.4)]
    high = [one(0.3, 0, 9.0, 1.0, 1.1), one(0.3, 1, 9.0, 1.0, np.nan), one(0.3, 2, 9.0, 2.0, 2.5)]
    assert curves.best_rate(low + high) == low and curves.best_rate([]) == []
    assert curves.last(high[1], "validation/loss") == 1.0
    with pytest.raises(ValueError, match="run0 logged no test/loss"):
        curves.last(low[0], "test/loss")
