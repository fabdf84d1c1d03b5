"""Where training batches come from: arrays on the device, or a Grain stream.

Both address examples by number. The examples of step s are a function of (seed, s) alone, so a
run resumes exactly, on any number of devices or hosts, with nothing to carry but the step.

An epoch visits every example once, in an order of its own: `shuffled` is a permutation that can be
asked for one index at a time. Of N examples an epoch uses the first floor(N / B) * B of its order.
Examples that hang together, such as the windows of a text whose state is carried, keep their order; where those of
like length lie side by side, whole batches of them are shuffled.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
ROUNDS = 32
GOLDEN = 0x9E3779B9  # 2^32 / the golden ratio: consecutive multiples spread over all words


def shuffled(index, size: int, seed, epoch, xp=jnp):
    """Positions `index` of a pseudo-random permutation of range(size), one for each seed and epoch.

    The swap-or-not shuffle (Hoang, Morris and Rogaway 2012): in each round x changes places with its
    partner K_r - x (mod size) when a hash of the larger of the two is odd. Each round is a bijection for
    any size, so no table is needed. `xp` is jax.numpy inside a step, numpy on the host: the same numbers.
    """
    with np.errstate(over="ignore"):
        n = xp.uint32(size)
        epoch = xp.asarray(epoch).astype(xp.uint32)
        seed = np.uint32(seed) if isinstance(seed, int) else xp.asarray(seed).astype(xp.uint32)
        base = _mix(_mix(seed, xp) ^ (epoch + xp.uint32(GOLDEN)), xp)

        def exchange(r, x):
            key = _mix(base + (xp.asarray(r).astype(xp.uint32) + xp.uint32(1)) * xp.uint32(GOLDEN), xp)
            partner = (key % n + n - x) % n
            odd = _mix(xp.maximum(x, partner) ^ key, xp) & xp.uint32(1)
            return xp.where(odd == 1, partner, x)

        x = xp.asarray(index).astype(xp.uint32)
        if xp is np:
            for r in range(ROUNDS):
                x = exchange(r, x)
        else:  # a loop of the program, not of its text: it compiles in a tenth of the time
            x = jax.lax.fori_loop(
                0, ROUNDS, exchange, jnp.broadcast_to(x, jnp.broadcast_shapes(x.shape, base.shape))
            )
        return x.astype(xp.int32)


def _mix(x, xp):
    """The 32-bit finalizer of MurmurHash3 (Appleby): every bit of the result depends on every bit of x."""
    x = (x ^ (x >> xp.uint32(16))) * xp.uint32(0x85EBCA6B)
    x = (x ^ (x >> xp.uint32(13))) * xp.uint32(0xC2B2AE35)
    return x ^ (x >> xp.uint32(16))


def rows(data: PyTree, indices, epoch, seed=None) -> PyTree:
    """The examples `indices` of arrays whose leading axis counts examples."""
    del epoch, seed
    return jax.tree.map(lambda array: array[indices], data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """What both kinds know: how many examples there are and which of them make the batch of a step.

    ordered: examples come in the order of their numbers, each epoch. grouped: a batch is of examples whose numbers
    follow one another, and the batches are shuffled; of the N mod B examples that an epoch leaves out some are at the
    beginning and the others at the end, how many being shuffled too.
    """

    num_examples: int
    batch_size: int
    seed: Any
    ordered: bool = False
    grouped: bool = False

    def __post_init__(self):
        if self.ordered and self.grouped:
            raise ValueError("a source is ordered or grouped; received both")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, received {self.batch_size}")
        if self.num_examples < self.batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is more than the {self.num_examples} training examples"
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.num_examples // self.batch_size

    def indices(self, step, shard: Any = 0, num_shards: int = 1, xp=jnp):
        """(epoch, the shard's indices) of the batch that makes step `step` into `step + 1`."""
        epoch, position = step // self.steps_per_epoch, step % self.steps_per_epoch
        share = self.batch_size // num_shards
        shift = 0
        if self.grouped:
            shifts = self.num_examples % self.batch_size + 1
            shift = shuffled(epoch % shifts, shifts, self.seed, epoch // shifts, xp)
            position = shuffled(position, self.steps_per_epoch, self.seed, epoch, xp)
        places = shift + position * self.batch_size + shard * share + xp.arange(share, dtype=xp.int32)
        if self.ordered or self.grouped:
            return epoch, places
        return epoch, shuffled(places, self.num_examples, self.seed, epoch, xp)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resident(Source):
    """Data small enough to live on the device; the step itself picks its rows.

    data: arrays, given to every device. take: `take(data, indices, epoch, seed) -> batch`, traced; it must ask for
    no other seed than that: in a vmapped sweep there are many.
    """

    data: PyTree
    take: Callable[[PyTree, Any, Any, Any], PyTree] = rows

    @classmethod
    def of(cls, data: PyTree, batch_size: int, seed: Any, **options) -> "Resident":
        """Of all the rows of arrays, which need not be on the device yet."""
        data = jax.tree.map(jnp.asarray, data)
        count = len(jax.tree.leaves(data)[0])
        return cls(data=data, num_examples=count, batch_size=batch_size, seed=seed, **options)

    def batch(self, data: PyTree, step, shard: Any = 0, num_shards: int = 1) -> PyTree:
        epoch, indices = self.indices(step, shard, num_shards)
        return self.take(data, indices, epoch, self.seed)

    def example(self) -> PyTree:
        """The first batch, on the host's behalf: for shapes and for looking."""
        return self.batch(self.data, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream(Source):
    """Data read by the host while the device works, through Grain.

    load: `load(indices, epoch) -> batch` of numpy arrays, called from a reading thread.
    """

    load: Callable[[np.ndarray, int], PyTree]
    buffer: int = 8

    def open(self, shard: int = 0, num_shards: int = 1):
        """A Grain iterator over this process's share of the batches; `get_state` is the next step."""
        import grain.python as grain

        def batch(step):
            epoch, indices = self.indices(step, shard, num_shards, np)
            return self.load(indices, int(epoch))

        steps = grain.MapDataset.range(2**31 - 1).map(batch)
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=self.buffer)))

    def example(self) -> PyTree:
        epoch, indices = self.indices(0, xp=np)
        return self.load(indices, int(epoch))
