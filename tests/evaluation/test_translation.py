import jax
import jax.numpy as jnp
import pytest

from lmlab.data.rearranged import Rearranged
from lmlab.evaluation.translation import Alignment

WORDS = Rearranged("sorting", 2, 6, 50)


class Looks:
    """Attention of 3/4 on the place that lies `shift` behind the letter's own, the rest spread evenly."""

    def __init__(self, shift):
        width = WORDS.arrays("test")["source"].shape[1]
        self.looked = jnp.asarray((WORDS.alignment("test") + shift) % width)

    def weights(self, variables, source, target):
        assert target.shape == (len(source), self.looked.shape[1] + 1)
        return 0.75 * jax.nn.one_hot(self.looked, source.shape[1]) + 0.25 / source.shape[1]


@pytest.mark.parametrize(("shift", "error", "within_one"), [(0, 0.0, 1.0), (1, 1.0, 1.0), (2, 1.0, 0.0)])
def test_alignments_are_wrong_by_so_many_places(shift, error, within_one):
    found, _ = Alignment(Looks(shift), WORDS)({}, None)

    assert (found["error"], found["within_one"]) == (error, within_one)
    even = 0.25 / (WORDS.longest + 1)
    assert found["mass"] == pytest.approx(even + 0.75 * (shift == 0), abs=1e-6)
