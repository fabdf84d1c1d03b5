"""The Fréchet distance against closed forms and SciPy's root, and the command over runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

import lmlab
from lmlab.evaluation import frechet

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def gaussian(count, mean, root, seed):
    """Points whose mean and covariance are exactly `mean` and root root^T."""
    x = np.random.default_rng(seed).normal(size=(count, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ root.T + mean


def test_it_is_the_closed_form_where_covariances_commute():
    """|m1 - m2|^2 + sum_i (s_i - r_i)^2 for deviations s and r along the same axes."""
    s, r = np.array([1.0, 2.0, 0.5]), np.array([3.0, 1.0, 0.5])
    first = gaussian(50, np.array([0.0, 1.0, 2.0]), np.diag(s), 0)
    second = gaussian(80, np.array([1.0, 1.0, -1.0]), np.diag(r), 1)
    np.testing.assert_allclose(frechet.distance(first, second), 1 + 9 + np.sum((s - r) ** 2), rtol=1e-9)


def test_it_is_the_formula_with_a_matrix_root():
    rng = np.random.default_rng(2)
    roots = rng.normal(size=(2, 6, 6))
    means = rng.normal(size=(2, 6))
    first, second = (gaussian(40, means[i], roots[i], i) for i in range(2))
    covariances = [root @ root.T for root in roots]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(covariances[0] + covariances[1] - 2 * root)
    np.testing.assert_allclose(frechet.distance(first, second), expected, rtol=1e-8)
    np.testing.assert_allclose(frechet.distance(second, first), expected, rtol=1e-8)


def test_it_is_zero_for_the_same_and_bears_features_that_are_always_zero():
    x = np.random.default_rng(0).normal(size=(30, 4))
    x[:, 2] = 0
    np.testing.assert_allclose(frechet.distance(x, x), 0, atol=1e-6)
    np.testing.assert_allclose(frechet.distance(x, x + 1), 4, rtol=1e-6)


def test_one_point_has_no_covariance():
    with pytest.raises(ValueError, match=r"features must be \[N, D\] with N at least 2, received \(1, 4\)"):
        frechet.distance(np.zeros((1, 4)), np.zeros((5, 4)))


# -- over runs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(a classifier of digits, a GAN of digits), seconds old."""
    folder = tmp_path_factory.mktemp("frechet")
    small = {"duration": "4 epochs", "evaluate_every": "0", "parallel.data": 1}
    classifier = lmlab.train(f"{EXPERIMENTS}/classifier.py:mlp,demo", folder / "classifier", small)
    small |= {"duration": "5 steps"}
    return classifier, lmlab.train(f"{EXPERIMENTS}/gan.py:demo", folder / "gan", small)


def test_real_images_are_near_and_noise_is_far(runs):
    scorer = frechet.Scorer(runs[0], 300)
    assert scorer(scorer.images) < 1e-4
    scale = scorer.scale()
    assert 0 < scale["test images"] < scale["test images at half the size"] < scale["uniform noise"]
    assert scale["test images"] < scale["uniform noise"] / 5
    small = np.random.default_rng(0).random((40, 4, 4), np.float32)
    assert scorer.enlarged(small).shape == (40, 8, 8), "what a figure shows of them"
    assert scorer(small) == scorer(np.kron(small, np.ones((2, 2), np.float32))), "enlarged pixel by pixel"
    assert scorer(scorer.images / np.float32(255)) < 1e-4, "bytes and floats are the same images"
    with pytest.raises(ValueError, match=r"images must be \(8, 8\), or a part of it; received \(28, 28\)"):
        scorer(np.zeros((5, 28, 28), np.float32))
    with pytest.raises(ValueError, match="no classifier"):
        frechet.Scorer(runs[1])


def test_the_hash_is_of_the_parameters(runs):
    variables = runs[0].variables
    before = frechet.hash_of(variables)
    assert before == frechet.hash_of(lmlab.load(runs[0].folder).variables) and len(before) == 64
    params = variables["params"]
    head = {**params["head"], "bias": np.asarray(params["head"]["bias"]) + 1e-3}
    assert frechet.hash_of({**variables, "params": {**params, "head": head}}) != before


def test_the_command_writes_a_record_and_a_figure(runs, tmp_path, capsys):
    classifier, gan = runs
    argv = [f"--classifier={classifier.folder}", str(gan.folder), "--samples=200", "--draws=2"]
    kept = {"metrics": {"test/bits_per_dim": {"mean": 1.25}}}
    (tmp_path / "gan-demo.json").write_text(json.dumps(kept))
    assert frechet.main([*argv, f"--results={tmp_path}"]) == 0
    assert "gan:demo  seed 0  draw 1: " in capsys.readouterr().out
    record = json.loads((tmp_path / "frechet-digits.json").read_text())
    (row,) = record["rows"]
    assert row["name"] == "gan:demo" and len(row["values"]) == 2 and row["seconds_per_1000"] > 0
    np.testing.assert_allclose(row["mean"], np.mean(row["values"]))
    assert row["values"][0] != row["values"][1], "each draw is another"
    assert row["size"] == [8, 8] and row["bits"] == 1.25
    lines = (tmp_path / "frechet-digits.md").read_text().splitlines()
    assert lines[2].startswith(f"| `gan:demo` | {row['mean']:.2f} ± ") and "| 1.250 | 8 x 8 |" in lines[2]
    assert any(line.startswith("| *test images* | ") for line in lines[3:])
    assert record["scale"]["test images"] < row["mean"]
    assert record["sha256"] == frechet.hash_of(classifier.variables)
    assert record["classifier"].startswith("lmlab train --config=experiments/classifier.py:mlp,demo")
    assert (tmp_path / "figures" / "frechet-digits.png").stat().st_size
    again = tmp_path / "again"
    frechet.main([*argv, f"--results={again}"])
    assert json.loads((again / "frechet-digits.json").read_text())["rows"][0]["values"] == row["values"]


def test_what_is_recorded_of_the_same_parameters_is_not_drawn_again(runs, tmp_path, capsys):
    classifier, gan = runs
    argv = [f"--classifier={classifier.folder}", str(gan.folder), "--samples=50", f"--results={tmp_path}"]
    path = tmp_path / "frechet-digits.json"
    assert frechet.main([*argv, "--draws=1"]) == 0 and "draw 0" in capsys.readouterr().out
    before = path.read_text()
    assert frechet.main([*argv, "--draws=1"]) == 0 and "draw 0" not in capsys.readouterr().out
    assert path.read_text() == before
    assert frechet.main([*argv, "--draws=2"]) == 0 and "draw 1" in capsys.readouterr().out
    record = json.loads(before)
    record["rows"][0]["sha256"] = ["of others"]
    path.write_text(json.dumps(record))
    assert frechet.main([*argv, "--draws=1"]) == 0 and "draw 0" in capsys.readouterr().out
    assert json.loads(path.read_text())["rows"][0]["values"] == json.loads(before)["rows"][0]["values"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "name the runs to be scored"),
        (["runs/x"], "--classifier is needed"),
        (["runs/x", "--classifier=nowhere"], "nowhere"),
        (["runs/x", "--classifier=c", "--draws=0"], "--draws must be at least 1, received 0"),
    ],
)
def test_what_is_refused(argv, said, capsys):
    assert frechet.main(argv) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_classifier_draws_no_images(runs, tmp_path, capsys):
    folder = str(runs[0].folder)
    assert frechet.main([f"--classifier={folder}", folder, "--samples=20", f"--results={tmp_path}"]) == 2
    assert "draws no images" in capsys.readouterr().err
