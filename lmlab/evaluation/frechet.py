"""One score for all generators of images: the Fréchet distance in the features of a classifier of our own.

    lmlab train --config=experiments/classifier.py:cnn,cpu --workdir=runs/classifier
    python -m lmlab.evaluation.frechet --classifier=runs/classifier runs/vae runs/gan runs/ddpm

It is the distance of Heusel et al. 2017 with another network in place of Inception, and so not the FID, nor
to be set beside one. Samples are drawn as by `lmlab sample` with its defaults, and compared with as many
training images; runs of one experiment and variant are one row, of three draws a run, or of one (--draws=1)
where there are three runs. Smaller images are enlarged, pixel by pixel. The test images, whose distance no
generator can be asked to beat, the same at half the size, and uniform noise give the scale. What the record
of the same classifier already tells of these very parameters is not drawn again: a call that was cut goes on.

Written: results/frechet-<data set>.json, a table of it (.md) and a figure with samples of each; the classifier
is recorded by the hash of its parameters. Bits per dimension are what `lmlab evaluate --record` left in results/.
"""

import hashlib
import inspect
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

BATCH = 1000
"""Samples drawn in one call; their seconds are what is told of a generator's speed."""


def distance(first: Float[Any, "N D"], second: Float[Any, "M D"]) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al. 2017, eq. 6; Dowson and Landau 1982).

    m, C: mean and covariance of the two sets of features, taken for Gaussians. The trace of the root is that
    of (R C2 R)^(1/2), R the root of C1, which is symmetric: its eigenvalues are real and not negative.
    """
    means, covariances = zip(*(_moments(features) for features in (first, second)), strict=True)
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    inner = np.linalg.eigvalsh(root @ covariances[1] @ root)
    overlap = np.sqrt(np.maximum(inner, 0)).sum()
    apart = np.sum((means[0] - means[1]) ** 2)
    return float(apart + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * overlap)


def _moments(features) -> tuple[np.ndarray, np.ndarray]:
    features = np.asarray(features, np.float64)
    if len(features) < 2:
        raise ValueError(f"features must be [N, D] with N at least 2, received {features.shape}")
    return features.mean(0), np.cov(features, rowvar=False).reshape(2 * features.shape[1:])


class Scorer:
    """The distance of images from `samples` training images of the classifier's data set.

    classifier: a run of an experiment whose task gives `outputs(variables, images) -> (features, logits)`
    and whose config names `data.name`.
    """

    def __init__(self, classifier, samples: int = 10_000):
        from lmlab.data import images

        if not hasattr(classifier.experiment.task, "outputs"):
            raise ValueError(
                f"--classifier: {classifier.folder} is a run of {classifier.path}, no classifier"
            )
        self.classifier, self.name = classifier, classifier.config.data.name
        self.part = images.parts(self.name, classifier.config.data.tfds_dir)
        self.shape = images.shape(self.name)
        self.images = self.part("train")["image"][:samples]
        self.reference = self.features(self.images)

    def enlarged(self, images) -> np.ndarray:
        """Images in [0, 1] of the classifier's size; smaller ones pixel by pixel."""
        images = np.asarray(images)
        if images.dtype == np.uint8:
            images = images.astype(np.float32) / 255
        times = max(1, self.shape[0] // images.shape[1])
        made = images.repeat(times, axis=1).repeat(times, axis=2)
        if made.shape[1:] != self.shape:
            raise ValueError(f"images must be {self.shape}, or a part of it; received {images.shape[1:]}")
        return made

    def features(self, images) -> np.ndarray:
        return self.classifier.experiment.task.outputs(self.classifier.variables, self.enlarged(images))[0]

    def __call__(self, images) -> float:
        return distance(self.reference, self.features(images))

    def scale(self) -> dict[str, float]:
        """The distance of what no generator is better than, and of what each should be better than."""
        from lmlab.data import images

        test, count = self.part("test"), len(self.reference)
        noise = np.random.default_rng(0).random((count, *self.shape), np.float32)
        return {
            "test images": self(test["image"][:count]),
            "test images at half the size": self(images.halved(test)["image"][:count]),
            "uniform noise": self(noise),
        }

    def facts(self) -> dict[str, Any]:
        """What a record must hold for the score to be made again."""
        run = self.classifier
        spec = f"experiments/{run.path.name}:{run.variant}".rstrip(":")
        return {
            "classifier": f"lmlab train --config={spec} --config.seed={run.config.seed}",
            "sha256": hash_of(run.variables),
            "reference": f"{len(self.reference):,} training images of {self.name}",
        }


def hash_of(variables) -> str:
    """The sha256 of all arrays, in the order of their names."""
    import jax

    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        digest.update(jax.tree_util.keystr(path).encode() + np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def draw(run, count: int, seed: int) -> tuple[np.ndarray, float]:
    """(`count` images by the run's own sampler, seconds for 1,000 of them once it is compiled)."""
    options = inspect.signature(run.experiment.sample).parameters if run.experiment.sample else {}
    if "num_samples" not in options:
        raise ValueError(f"{run.folder}: {run.path} draws no images (its sampler has no num_samples)")
    size = min(BATCH, count)
    parts, seconds = [], []
    for part in range(-(-count // size)):
        started = time.perf_counter()
        images = run.sample(seed=1000 * seed + part, num_samples=size).images
        if images is None:
            raise ValueError(f"{run.folder}: {run.path} draws no images")
        parts.append(np.asarray(images))
        seconds.append(time.perf_counter() - started)
    return np.concatenate(parts)[:count], statistics.median(seconds[-5:]) * 1000 / size


def grouped(runs: Sequence) -> dict[str, list]:
    """The runs of each experiment and variant, by name: `gan:dcgan,cpu`."""
    groups: dict[str, list] = {}
    for run in runs:
        groups.setdefault(f"{run.path.stem}:{run.variant}".rstrip(":"), []).append(run)
    return groups


def measured(name: str, runs: Sequence, scorer: Scorer, draws: int) -> dict[str, Any]:
    """The row of one experiment and variant: the distances of `draws` draws of each of its runs."""
    values, seconds, images = [], [], None
    for run in runs:
        for number in range(draws):
            images, took = draw(run, len(scorer.reference), number)
            values.append(scorer(images))
            seconds.append(took)
            print(f"{name}  seed {run.config.seed}  draw {number}: {values[-1]:.3f}", flush=True)
    return {
        "name": name,
        "seeds": [run.config.seed for run in runs],
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
        "values": values,
        "size": list(images.shape[1:3]),
        "seconds_per_1000": statistics.median(seconds),
    }


def bits(name: str, results: Path) -> float | None:
    """Bits per dimension of the test images, from the record of an experiment and variant that has them."""
    path = results / f"{name.replace(':', '-').replace(',', '-')}.json"
    metrics = json.loads(path.read_text())["metrics"] if path.exists() else {}
    found = [metrics[key]["mean"] for key in ("test/bits_per_dim", "test/bits_per_token") if key in metrics]
    return found[0] if found else None


def table(record: dict[str, Any]) -> str:
    """A record in Markdown, the best above."""
    lines = [
        "| generator | Fréchet distance | draws | bits a dimension | pixels | seconds for 1,000 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(record["rows"], key=lambda row: row["mean"]):
        size, told = row["size"], "" if row["bits"] is None else f"{row['bits']:.3f}"
        lines.append(
            f"| `{row['name']}` | {row['mean']:.2f} ± {row['deviation']:.2f} | {len(row['values'])} | {told}"
            f" | {size[0]} x {size[1]} | {row['seconds_per_1000']:.3g} |"
        )
    lines += [f"| *{name}* | {value:.2f} | | | | |" for name, value in record["scale"].items()]
    return "\n".join(lines) + "\n"


def figure(found: Sequence[dict[str, Any]], groups: dict[str, list], scorer: Scorer, scale: dict[str, float]):
    """Ten samples of each, the best above, with their distances; real images first."""
    from lmlab.figures import images

    shown = {f"test images  {scale['test images']:.2f}": scorer.enlarged(scorer.part("test")["image"][:10])}
    for row in sorted(found, key=lambda row: row["mean"]):
        drawn = groups[row["name"]][0].sample(num_samples=10).images
        shown[f"{row['name']}  {row['mean']:.1f}"] = scorer.enlarged(drawn)
    return images.rows(shown)


def main(argv: Sequence[str]) -> int:
    from lmlab.errors import fail
    from lmlab.flags import Flags, Helped, UsageError

    fv = Flags(__doc__)
    fv.string("classifier", "", "the run whose features are used")
    fv.integer("samples", 10_000, "images on both sides")
    fv.integer("draws", 3, "draws of each run")
    fv.string("results", "results", "where the record and the figure are written")
    try:
        folders = fv.parse(list(argv), positional=True)
        if not folders:
            raise UsageError("name the runs to be scored: runs/vae runs/gan")
        fv.require("classifier")
        for name in ("samples", "draws"):
            if getattr(fv, name) < 1:
                raise UsageError(f"--{name} must be at least 1, received {getattr(fv, name)}")
        score(fv.classifier, folders, fv.samples, fv.draws, Path(fv.results))
    except Helped:
        pass
    except (ValueError, OSError) as error:
        return fail("frechet", error)
    return 0


def score(classifier: str, folders: Sequence[str], samples: int, draws: int, results: Path) -> Path:
    """Scores all runs below the folders; writes the record and the figure, returns the record's path."""
    from lmlab import run as runs_lib
    from lmlab.figures import style

    scorer = Scorer(runs_lib.Run(classifier), samples)
    groups = grouped([run for folder in folders for run in runs_lib.find(folder)])
    name = f"frechet-{scorer.name}"
    path = results / f"{name}.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    record = {**scorer.facts(), "draws": draws}
    same = all(old.get(key) == value for key, value in record.items())
    before = {row["name"]: row for row in old["rows"]} if same else {}
    scale = old["scale"] if same else scorer.scale()
    print("  ".join(f"{name} {value:.4g}" for name, value in scale.items()), flush=True)
    first = next(iter(groups.values()))[0]
    record |= {"hardware": {"devices": first.record["devices"], **first.record["host"]}, "scale": scale}
    told = {
        spec: {"sha256": [hash_of(run.variables) for run in members], "bits": bits(spec, results)}
        for spec, members in groups.items()
    }
    stand = [spec for spec in groups if before.get(spec, {}).get("sha256") == told[spec]["sha256"]]
    found = record["rows"] = [{**before[spec], **told[spec]} for spec in stand]
    results.mkdir(parents=True, exist_ok=True)
    for spec, members in groups.items():
        if spec not in stand:
            found.append({**measured(spec, members, scorer, draws), **told[spec]})
        path.write_text(json.dumps(record, indent=1) + "\n")
    style.save(figure(found, groups, scorer, scale), results / "figures", name, ["png"])
    path.with_suffix(".md").write_text(table(record))
    print(f"{table(record)}written: {path}")
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
