"""Points of one or two dimensions from densities that are known: mixtures of Gaussians, some along a curve."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

NAMES = ("three", "ring", "spiral", "moons")


@dataclasses.dataclass(frozen=True)
class Mixture:
    """p(x) = sum_k w_k N(x; m_k, s_k^2 I): `weights`, `means`, `scales`."""

    weights: Float[np.ndarray, "K"]
    means: Float[np.ndarray, "K D"]
    scales: Float[np.ndarray, "K"]

    @property
    def dimensions(self) -> int:
        return self.means.shape[1]

    @property
    def reach(self) -> float:
        """No coordinate of a point drawn lies farther from 0, but for one in a million."""
        return float(np.max(np.abs(self.means) + 5 * self.scales[:, None]))

    def draw(self, key, count: int) -> Float[Array, "N D"]:
        first, second = jax.random.split(key)
        k = jax.random.choice(first, len(self.weights), (count,), p=jnp.asarray(self.weights, jnp.float32))
        noise = jax.random.normal(second, (count, self.dimensions))
        return (
            jnp.asarray(self.means, jnp.float32)[k] + jnp.asarray(self.scales, jnp.float32)[k, None] * noise
        )

    def log_joint(self, x: Float[Array, "N D"]) -> Float[Array, "N K"]:
        """log w_k N(x; m_k, s_k^2 I)."""
        means, scales = jnp.asarray(self.means)[None], jnp.asarray(self.scales)[None]
        squares = jnp.sum((x[:, None] - means) ** 2, axis=-1) / scales**2
        constant = jnp.log(2 * jnp.pi * scales**2) * self.dimensions
        return jnp.log(jnp.asarray(self.weights))[None] - 0.5 * (squares + constant)

    def density(self, x: Float[Array, "N D"]) -> Float[Array, "N"]:
        return jnp.exp(jax.nn.logsumexp(self.log_joint(x), axis=-1))

    def noised(self, signal: float) -> "Mixture":
        """The density of sqrt(a) x + sqrt(1 - a) e with standard normal e; a: `signal`."""
        return Mixture(
            self.weights, np.sqrt(signal) * self.means, np.sqrt(signal * self.scales**2 + 1 - signal)
        )

    def denoised(self, x: Float[Array, "N D"], signal: float) -> Float[Array, "N D"]:
        """E[x_0 | sqrt(a) x_0 + sqrt(1 - a) e = x]: what the best denoiser says."""
        noised = self.noised(signal)
        shares = jax.nn.softmax(noised.log_joint(x), axis=-1)
        gain = jnp.asarray(np.sqrt(signal) * self.scales**2 / noised.scales**2)
        means = jnp.asarray(self.means)[None]
        apart = x[:, None] - jnp.asarray(noised.means)[None]
        return jnp.sum(shares[..., None] * (means + gain[None, :, None] * apart), axis=1)

    def nearest(self, x: Float[np.ndarray, "N D"]) -> tuple[np.ndarray, np.ndarray]:
        """(the component whose mean is nearest to each point, the distance in its scales)."""
        apart = np.linalg.norm(np.asarray(x)[:, None] - self.means[None], axis=-1) / self.scales[None]
        k = apart.argmin(1)
        return k, apart[np.arange(len(k)), k]


def ring(count: int = 8, radius: float = 2.0, scale: float = 0.02) -> Mixture:
    """Gaussians on a circle: the test of Metz et al. 2017 for modes that a generator leaves out."""
    angles = 2 * np.pi * np.arange(count) / count
    return _even(radius * np.stack([np.cos(angles), np.sin(angles)], 1), scale)


def mixture(name: str) -> Mixture:
    """three (one dimension), ring, spiral, moons (two dimensions)."""
    if name == "three":
        weights, means, scales = [0.3, 0.5, 0.2], [[-2.0], [0.5], [2.2]], [0.3, 0.5, 0.15]
        return Mixture(np.array(weights), np.array(means), np.array(scales))
    if name == "ring":
        return ring(scale=0.15)
    if name == "spiral":
        angle = np.pi * np.sqrt(np.linspace(0.5, 16, 120))
        return _even(0.17 * angle[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1), 0.06)
    if name == "moons":
        angle = np.linspace(0, np.pi, 60)
        upper = np.stack([1.5 * np.cos(angle) - 0.75, 1.5 * np.sin(angle) - 0.4], 1)
        return _even(np.concatenate([upper, -upper]), 0.08)
    raise ValueError(f"unknown density {name!r}; allowed: {', '.join(NAMES)}")


def _even(means: np.ndarray, scale: float) -> Mixture:
    count = len(means)
    return Mixture(np.full(count, 1 / count), means, np.full(count, scale))
