"""A linear probe: what one map reads off vectors, fitted on some and scored on others (Alain and Bengio 2017)."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Probe:
    """Says yes where weight (x - mean) / deviation + bias is above 0."""

    mean: Float[np.ndarray, "D"]
    deviation: Float[np.ndarray, "D"]
    weight: Float[np.ndarray, "D"]
    bias: float

    def __call__(self, x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N"]:
        """The logits of yes."""
        return standardized(x, self.mean, self.deviation) @ self.weight + self.bias


def fit(
    x: Float[np.ndarray, "N D"], yes: Bool[np.ndarray, "N"], decay: float = 1e-2, steps: int = 20
) -> Probe:
    """Logistic regression on standardized features by Newton's method.

    Its minimum: the mean of -log P(yes or no | x) + decay / 2 |weight|^2, to which the bias does not count.
    """
    if len(x) != len(yes) or yes.all() or not yes.any():
        raise ValueError(
            f"a probe needs examples of both kinds, received {int(yes.sum())} yes of {len(yes)}, {len(x)} x"
        )
    if decay <= 0:
        raise ValueError(f"decay must be above 0, received {decay}")
    x = np.asarray(x, np.float64)
    mean, deviation = x.mean(0), x.std(0)
    ones = np.hstack([standardized(x, mean, deviation), np.ones((len(x), 1))])
    penalty = np.append(np.full(x.shape[1], decay), 0.0)
    w = np.zeros(len(penalty))
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(ones @ w, -500, 500)))
        slope = ones.T @ (p - yes) / len(x) + penalty * w
        if np.abs(slope).max() < 1e-9:
            break
        curvature = (ones * (p * (1 - p))[:, None]).T @ ones / len(x) + np.diag(penalty + 1e-10)
        w = w - np.linalg.solve(curvature, slope)
    return Probe(mean, deviation, w[:-1], float(w[-1]))


def standardized(x, mean, deviation):
    """What does not vary is 0."""
    moved = np.asarray(x, np.float64) - mean[None]
    return np.divide(moved, deviation[None], out=np.zeros_like(moved), where=deviation[None] > 1e-12)


def interval(
    right: Bool[np.ndarray, "N"], group: Int[np.ndarray, "N"], draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Of the mean of `right`: 95 % of draws of whole groups with replacement, since examples of one group are alike."""
    _, group = np.unique(group, return_inverse=True)
    count = np.bincount(group)
    total = np.bincount(group, right)
    drawn = np.random.default_rng(seed).integers(0, len(count), (draws, len(count)))
    low, high = np.quantile(total[drawn].sum(1) / count[drawn].sum(1), [0.025, 0.975])
    return float(low), float(high)
