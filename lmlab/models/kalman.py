"""A linear model with Gaussian noise: its likelihood by the filter of Kalman 1960, the smoother of Rauch et al. 1965.

    z_1 ~ N(m, P),   z_t = F z_t-1 + N(0, Q),   x_t = H z_t + N(0, R)

What an HMM is with a state that is a vector in place of one of K: the filter is its forward pass, the smoother its
backward one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class LinearGaussian(NamedTuple):
    """The model's matrices by the letters above; D the size of the state z, E of what is observed, x."""

    F: Float[Array, "D D"]
    Q: Float[Array, "D D"]
    H: Float[Array, "E D"]
    R: Float[Array, "E E"]
    m: Float[Array, "D"]
    P: Float[Array, "D D"]

    def draw(
        self, seed, tracks: int, length: int
    ) -> tuple[Float[np.ndarray, "N T D"], Float[np.ndarray, "N T E"]]:
        """(states, observations) of `tracks` tracks, on the host."""
        F, Q, H, R, m, P = (np.asarray(matrix, np.float64) for matrix in self)
        rng = np.random.default_rng(seed)
        z = [rng.multivariate_normal(m, P, tracks)]
        for noise in rng.multivariate_normal(np.zeros(len(Q)), Q, (length - 1, tracks)):
            z.append(z[-1] @ F.T + noise)
        states = np.stack(z, 1)
        return states, states @ H.T + rng.multivariate_normal(np.zeros(len(R)), R, (tracks, length))


class Filtered(NamedTuple):
    """Means and covariances of z_t: `mean`, `cov` given x_1 ... x_t; `ahead_mean`, `ahead_cov` given x_1 ... x_t-1."""

    mean: Float[Array, "T D"]
    cov: Float[Array, "T D D"]
    ahead_mean: Float[Array, "T D"]
    ahead_cov: Float[Array, "T D D"]
    log_likelihood: Float[Array, "T"]


def filtered(model: LinearGaussian, x: Float[Array, "T E"]) -> Filtered:
    """Kalman 1960: with what z_t is expected to be, N(a, C), and S = H C H' + R, K = C H' S^-1,

        mean = a + K (x_t - H a),   cov = C - K S K',   next a = F mean,   next C = F cov F' + Q

    log_likelihood: log P(x_t | x_1 ... x_t-1) = log N(x_t; H a, S), whose sum is that of the track.
    """
    F, Q, H, R, m, P = model

    def step(expected, x):
        a, C = expected
        S = H @ C @ H.T + R
        gain = jnp.linalg.solve(S, H @ C).T
        apart = x - H @ a
        mean, cov = a + gain @ apart, symmetric(C - gain @ S @ gain.T)
        log_p = jax.scipy.stats.multivariate_normal.logpdf(apart, jnp.zeros_like(apart), S)
        return (F @ mean, symmetric(F @ cov @ F.T + Q)), Filtered(mean, cov, a, C, log_p)

    return jax.lax.scan(step, (m, P), x)[1]


def smoothed(model: LinearGaussian, seen: Filtered) -> tuple[Float[Array, "T D"], Float[Array, "T D D"]]:
    """(means, covariances) of z_t given all of x, backwards from the filter's last (Rauch, Tung and Striebel 1965).

    With G = cov_t F' C_t+1^-1:   m_t = mean_t + G (m_t+1 - a_t+1),   V_t = cov_t + G (V_t+1 - C_t+1) G'
    """

    def step(after, seen):
        (mean_after, cov_after), (mean, cov, a, C) = after, seen
        G = jnp.linalg.solve(C, model.F @ cov).T
        new = mean + G @ (mean_after - a), symmetric(cov + G @ (cov_after - C) @ G.T)
        return new, new

    last = seen.mean[-1], seen.cov[-1]
    rest = (seen.mean[:-1], seen.cov[:-1], seen.ahead_mean[1:], seen.ahead_cov[1:])
    _, (means, covs) = jax.lax.scan(step, last, rest, reverse=True)
    return jnp.concatenate([means, last[0][None]]), jnp.concatenate([covs, last[1][None]])


def symmetric(matrix: Float[Array, "D D"]) -> Float[Array, "D D"]:
    """Without what rounding makes of a covariance."""
    return (matrix + matrix.T) / 2


def moving(acceleration, observation, dt: float = 1.0) -> LinearGaussian:
    """A point in the plane at nearly constant velocity, z = (x, y, their velocities), of which x and y are observed.

    acceleration: the deviation of a push that lasts for one step of `dt`; observation: that of each coordinate seen.
    """
    eye, zero = jnp.eye(2), jnp.zeros((2, 2))
    push = jnp.concatenate([dt**2 / 2 * eye, dt * eye])
    return LinearGaussian(
        F=jnp.block([[eye, dt * eye], [zero, eye]]),
        Q=acceleration**2 * push @ push.T,
        H=jnp.concatenate([eye, zero], axis=1),
        R=observation**2 * eye,
        m=jnp.zeros(4),
        P=jnp.diag(jnp.array([10.0, 10.0, 1.0, 1.0])),
    )
