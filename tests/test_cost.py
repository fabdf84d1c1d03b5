"""What shapes tell, against XLA's own analyses, hand counts and arrays that are really there."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lmlab import cost

WIDTH, HIDDEN, DEPTH, ROWS = 64, 256, 6, 32


class Block(nn.Module):
    """Keeps its input, the tangent and the sine of a hidden layer, four times as wide."""

    @nn.compact
    def __call__(self, x, _=None):
        hidden = jnp.sin(nn.tanh(nn.Dense(HIDDEN, use_bias=False)(x)))
        return x + nn.Dense(WIDTH, use_bias=False)(hidden), None


class Stack(nn.Module):
    scanned: bool = False
    remat: bool = False
    unroll: int = 1

    @nn.compact
    def __call__(self, x):
        block = nn.remat(Block, prevent_cse=not self.scanned) if self.remat else Block
        if self.scanned:
            lifted = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=DEPTH,
                unroll=self.unroll,
            )
            return lifted()(x, None)[0]
        for _ in range(DEPTH):
            x, _ = block()(x)
        return x


def parts(**fields):
    """(loss, parameters, inputs) of a stack, as shapes."""
    model, x = Stack(**fields), jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    return lambda params, x: jnp.sum(model.apply(params, x) ** 2), params, x


def counted(**fields) -> float:
    loss, params, x = parts(**fields)
    return cost.flops(jax.make_jaxpr(jax.grad(loss))(params, x))


# Six blocks of two products, forward, and twice as much backward, but for the first block's input.
PRODUCTS = 2 * ROWS * WIDTH * HIDDEN * 2 * DEPTH


def test_the_operations_are_those_of_the_products():
    assert counted() == pytest.approx(3 * PRODUCTS - PRODUCTS / (2 * DEPTH), rel=0.03)


@pytest.mark.parametrize("unroll", [1, 2, 4, 6, 8])
def test_a_scan_counts_every_pass(unroll):
    """XLA alone would count one (or `unroll` of them)."""
    whole = 3 * PRODUCTS
    assert counted(scanned=True, unroll=unroll) == pytest.approx(whole, rel=0.03)


def test_a_scan_within_a_scan():
    def product(x, w):
        return x @ w, None

    def twice(x, w):
        return jax.lax.scan(product, x, w)

    def all_of_them(x, w):
        return jax.jit(lambda x, w: jax.lax.scan(twice, x, w)[0])(x, w)

    x, w = jnp.zeros((8, 16)), jnp.zeros((5, 3, 16, 16))
    assert cost.flops(jax.make_jaxpr(all_of_them)(x, w)) == pytest.approx(15 * 2 * 8 * 16 * 16, rel=0.02)


@pytest.mark.parametrize("scanned", [False, True])
def test_remat_makes_the_forward_products_again(scanned):
    again = counted(remat=True, scanned=scanned) - counted(scanned=scanned)
    assert PRODUCTS / 3 < again < 1.1 * PRODUCTS  # the last product of a block need not be


def test_the_count_is_the_compilers():
    loss, params, x = parts()
    compiled = jax.jit(jax.grad(loss)).lower(params, x).compile()
    assert counted() == pytest.approx(compiled.cost_analysis()["flops"], rel=0.05)


@pytest.mark.parametrize("scanned", [False, True])
def test_what_is_kept(scanned):
    """Of each block: its input, sin and cos of the hidden layer and 1 - tanh^2 or what it is made of."""
    kept = cost.kept(*parts(scanned=scanned))
    wide = DEPTH * ROWS * HIDDEN * 4
    assert 3 * wide <= kept.activations <= 4.5 * wide
    assert kept.casts == 0 and kept.again == 0


@pytest.mark.parametrize("scanned", [False, True])
def test_remat_keeps_the_inputs_of_blocks_and_one_block(scanned):
    kept = cost.kept(*parts(scanned=scanned, remat=True))
    narrow = ROWS * WIDTH * 4
    assert (DEPTH - 1) * narrow <= kept.activations <= (DEPTH + 2) * narrow
    one = cost.kept(*parts(scanned=scanned)).activations / DEPTH
    assert kept.again == pytest.approx(one, rel=0.25)


def test_what_is_made_of_parameters_alone_is_told_apart():
    def loss(weights, x):
        return jnp.sum(jnp.sin(x.astype(jnp.bfloat16) @ weights.astype(jnp.bfloat16)))

    kept = cost.kept(loss, jnp.zeros((16, 8)), jnp.zeros((32, 16), jnp.bfloat16))
    assert kept.casts == 0  # the inputs have no gradient: the cast weights are not needed again
    kept = cost.kept(
        lambda w, x: loss(w["b"], x @ w["a"]),
        {"a": jnp.eye(16), "b": jnp.zeros((16, 8))},
        jnp.zeros((32, 16)),
    )
    assert kept.casts == 16 * 8 * 2


def test_an_argument_is_not_kept_twice():
    weights, x = jnp.zeros((16, 8)), jnp.zeros((32, 16))
    kept = cost.kept(lambda w, x: jnp.sum(x @ w), weights, x)
    assert kept.arrays == {} and kept.casts == 0


def test_a_device_holds_its_shard():
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    put = functools.partial(jax.device_put, jnp.zeros((16, 6)))
    for spec in (PartitionSpec("a"), PartitionSpec("a", "b"), PartitionSpec(("a", "b")), PartitionSpec()):
        array = put(NamedSharding(mesh, spec))
        assert cost.share({"x": array}) == array.addressable_shards[0].data.nbytes
        assert cost.size({"x": array}) == array.nbytes
    assert cost.share(jax.ShapeDtypeStruct((3, 5), jnp.bfloat16)) == 30  # without a placement: whole
