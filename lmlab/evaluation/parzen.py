"""The Parzen window estimate of a likelihood, by which the first papers on GANs compared themselves.

A Gaussian of one width round each sample stands for the model. In many dimensions it says little of
the model (Theis et al. 2016); it is here because it is what was published.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@jax.jit
def _log_density(x: Float[Array, "B D"], samples: Float[Array, "N D"], scale) -> Float[Array, "B"]:
    """log 1/N sum_n N(x; s_n, scale^2 I), in nats."""
    square = jnp.sum(x**2, 1)[:, None] + jnp.sum(samples**2, 1)[None] - 2 * x @ samples.T
    constant = x.shape[1] * jnp.log(scale * jnp.sqrt(2 * jnp.pi)) + jnp.log(len(samples))
    return jax.nn.logsumexp(-square / (2 * scale**2), axis=1) - constant


def log_likelihood(
    x: Float[np.ndarray, "M D"], samples: Float[np.ndarray, "N D"], scale: float
) -> np.ndarray:
    """Nats of each row of x."""
    samples = jnp.asarray(samples)
    parts = [_log_density(jnp.asarray(x[i : i + 500]), samples, scale) for i in range(0, len(x), 500)]
    return np.concatenate(parts)


def width(x: Float[np.ndarray, "M D"], samples: Float[np.ndarray, "N D"], scales: Sequence[float]) -> float:
    """That of the widths under which x, which is to be no test data, is likeliest."""
    return max(scales, key=lambda scale: log_likelihood(x, samples, scale).mean())
