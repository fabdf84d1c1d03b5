import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmlab.layers import tricks
from lmlab.layers.recurrent import CELLS, LSTMCarry, Recurrent


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


@functools.partial(jax.jit, static_argnames=("model", "method", "causal", "train", "mutable"))
def apply(model, variables, *inputs, method=None, **keywords):
    return model.apply(variables, *inputs, method=method, **keywords)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def make(layer, *inputs, **keywords):
    """Weights drawn by NumPy, none of them 0: no initialization to compile."""
    shapes = nn.meta.unbox(jax.eval_shape(layer.init, jax.random.key(0), *inputs, **keywords))
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(tree, [0.4 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])


TORCH = {"rnn": "RNN", "gru": "GRU", "lstm": "LSTM"}


def torch_tensors(peer, params, num_layers, bidirectional):
    """Pairs (PyTorch's parameter, our array laid out as it): also for gradients."""
    pairs = []
    for layer in range(num_layers):
        for ours, theirs in (("", ""), ("_backward", "_reverse"))[: 2 if bidirectional else 1]:
            kernel, u = params[f"input_{layer}{ours}"]["kernel"], params[f"recurrent_{layer}{ours}"]
            pairs.append((getattr(peer, f"weight_ih_l{layer}{theirs}"), kernel.T))
            pairs.append((getattr(peer, f"weight_hh_l{layer}{theirs}"), u.T))
            pairs.append((getattr(peer, f"bias_ih_l{layer}{theirs}"), params[f"input_{layer}{ours}"]["bias"]))
            second = getattr(peer, f"bias_hh_l{layer}{theirs}")
            c = params.get(f"candidate_bias_{layer}{ours}")
            pairs.append((second, jnp.zeros(second.shape) if c is None else jnp.pad(c, (2 * len(c), 0))))
    return pairs


@pytest.mark.parametrize("cell", list(TORCH))
@pytest.mark.parametrize(("num_layers", "bidirectional", "ragged"), [(1, False, False), (2, True, True)])
def test_output_and_gradients_are_pytorchs(cell, num_layers, bidirectional, ragged):
    torch = pytest.importorskip("torch")
    x, lengths = normal(0, 3, 6, 4), np.array([6, 2, 4])
    layer = Recurrent(5, cell, num_layers, bidirectional)
    variables = make(layer, x)
    peer = getattr(torch.nn, TORCH[cell])(4, 5, num_layers, batch_first=True, bidirectional=bidirectional)
    for target, value in torch_tensors(peer, variables["params"], num_layers, bidirectional):
        target.data.copy_(torch.tensor(np.asarray(value)))

    tx = torch.tensor(np.asarray(x), requires_grad=True)
    if ragged:
        pack, pad = torch.nn.utils.rnn.pack_padded_sequence, torch.nn.utils.rnn.pad_packed_sequence
        packed, last = peer(pack(tx, torch.tensor(lengths), batch_first=True, enforce_sorted=False))
        expected, _ = pad(packed, batch_first=True)
    else:
        expected, last = peer(tx)
    g = normal(9, *expected.shape)
    (expected * torch.tensor(np.asarray(g))).sum().backward()

    @jax.jit
    def run(variables, x):
        def forward(variables, x):
            return layer.apply(variables, x, lengths=jnp.asarray(lengths) if ragged else None)

        y, pull, carry = jax.vjp(forward, variables, x, has_aux=True)
        return y, carry, *pull(g)

    y, carry, grads, dx = run(variables, x)
    np.testing.assert_allclose(y, expected.detach(), atol=1e-5)
    np.testing.assert_allclose(dx, tx.grad, atol=1e-5)
    for target, value in torch_tensors(peer, grads["params"], num_layers, bidirectional):
        expected_grad = target.grad.numpy()
        if value.shape == (15,) and not np.any(value[:10]):  # c of the GRU: the other biases are in b
            expected_grad = np.concatenate([np.zeros(10, np.float32), expected_grad[10:]])
        if np.any(value):
            np.testing.assert_allclose(value, expected_grad, rtol=1e-5, atol=2e-5)
    if cell == "lstm":
        np.testing.assert_allclose(jnp.stack([c.h for c in carry]), last[0].detach(), atol=1e-5)
        np.testing.assert_allclose(jnp.stack([c.c for c in carry]), last[1].detach(), atol=1e-5)
    else:
        np.testing.assert_allclose(jnp.stack(carry), last.detach(), atol=1e-5)


def test_the_form_with_the_reset_gate_inside_is_the_equation():
    x, h = normal(0, 2, 6, 4), np.asarray(normal(1, 2, 5))
    layer = Recurrent(5, "gru_inside")
    variables = make(layer, x)
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), variables["params"])
    w_r, w_u, w_n = np.split(params["input_0"]["kernel"], 3, 1)
    b_r, b_u, b_n = np.split(params["input_0"]["bias"], 3)
    u_r, u_u, u_n = np.split(params["recurrent_0"], 3, 1)

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    y, (last,) = apply(layer, variables, x, (jnp.asarray(h),))
    for t in range(6):
        now = np.asarray(x[:, t], np.float64)
        r = sigmoid(now @ w_r + h @ u_r + b_r)
        u = sigmoid(now @ w_u + h @ u_u + b_u)
        n = np.tanh(now @ w_n + (r * h) @ u_n + b_n)
        h = u * h + (1 - u) * n
        np.testing.assert_allclose(y[:, t], h, atol=1e-5)
    np.testing.assert_allclose(last, h, atol=1e-5)
    outside = Recurrent(5, "gru")
    params = {**variables["params"], "candidate_bias_0": jnp.zeros(5)}
    assert np.abs(apply(outside, {"params": params}, x)[0] - apply(layer, variables, x)[0]).max() > 1e-3


@pytest.mark.parametrize("cell", ["gru", "gru_inside"])
def test_an_update_gate_of_one_keeps_the_old_state(cell):
    x, h = normal(0, 2, 6, 4), normal(1, 2, 5)
    layer = Recurrent(5, cell)
    variables = make(layer, x)
    bias = variables["params"]["input_0"]["bias"].at[5:10].set(50.0)
    variables["params"]["input_0"]["bias"] = bias
    _, (last,) = apply(layer, variables, x, (h,))
    np.testing.assert_allclose(last, h, atol=1e-6)


@pytest.mark.parametrize("cell", list(CELLS))
def test_pieces_and_single_steps_equal_the_whole(cell):
    x = normal(0, 2, 6, 4)
    layer = Recurrent(5, cell, num_layers=2)
    variables = make(layer, x)
    whole, last = apply(layer, variables, x)
    y, carry = apply(layer, variables, x[:, :4])
    pieces = [y]
    for t in (4, 5):
        y, carry = apply(layer, variables, x[:, t], carry, method="step")
        pieces.append(y[:, None])
    np.testing.assert_allclose(jnp.concatenate(pieces, 1), whole, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), carry, last)


def test_padding_has_no_influence():
    x, lengths = normal(0, 2, 6, 4), jnp.array([6, 3])
    layer = Recurrent(5, "lstm", num_layers=2, bidirectional=True)
    variables = make(layer, x)
    y, last = apply(layer, variables, x, lengths=lengths)
    alone, alone_last = apply(layer, variables, x[1:, :3])
    np.testing.assert_allclose(y[1:, :3], alone, atol=1e-6)
    assert not y[1, 3:].any()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1:], b, atol=1e-6), last, alone_last)
    slope = jax.jit(jax.grad(lambda x: jnp.sum(layer.apply(variables, x, lengths=lengths)[0] ** 2)))(x)
    assert not slope[1, 3:].any() and slope[1, :3].any()


def test_one_direction_is_causal():
    x = normal(0, 1, 5, 4)
    layer = Recurrent(3, "gru", num_layers=2)
    variables = make(layer, x)
    jacobian = jax.jit(jax.jacrev(lambda x: layer.apply(variables, x)[0].sum((0, 2))))(x)[
        :, 0
    ]  # (T out, T in, D)
    reach = np.abs(jacobian).sum(-1) > 0
    np.testing.assert_array_equal(reach, np.tril(np.ones((5, 5), bool)))


def test_gates_are_kept_only_when_asked():
    x = normal(0, 2, 6, 4)
    for cell, names in (("gru", {"reset", "update"}), ("lstm", {"input", "forget", "output"})):
        layer = Recurrent(5, cell, num_layers=2)
        assert set(jax.eval_shape(layer.init, jax.random.key(0), x)) == {"params"}
        variables = make(layer, x)
        _, kept = apply(layer, variables, x, mutable="intermediates")
        assert set(kept["intermediates"]) == {"gates_0", "gates_1"}
        (gates,) = kept["intermediates"]["gates_1"]
        assert set(gates) == names
        for gate in gates.values():
            assert gate.shape == (2, 6, 5) and (gate > 0).all() and (gate < 1).all()


def test_initial_recurrent_weights_are_orthogonal_gate_by_gate():
    variables = nn.meta.unbox(Recurrent(6, "lstm").init(jax.random.key(0), normal(0, 1, 2, 3)))
    for gate in np.split(np.asarray(variables["params"]["recurrent_0"]), 4, axis=1):
        np.testing.assert_allclose(gate.T @ gate, np.eye(6), atol=1e-5)


def test_dropout_falls_between_layers_only():
    x, rngs = normal(0, 2, 6, 4), {"dropout": jax.random.key(1)}
    for num_layers, changed in ((1, False), (2, True)):
        layer = Recurrent(5, "gru", num_layers, dropout=0.5)
        variables = make(layer, x)
        plain, dropped = apply(layer, variables, x)[0], apply(layer, variables, x, train=True, rngs=rngs)[0]
        assert bool((plain != dropped).any()) == changed


def test_carry_of_an_lstm_has_names():
    layer, x = Recurrent(3, "lstm"), normal(0, 2, 4, 3)
    (_, (carry,)), _ = jax.eval_shape(layer.init_with_output, jax.random.key(0), x)
    assert isinstance(carry, LSTMCarry)


def test_an_unknown_cell_is_refused_in_one_line():
    with pytest.raises(ValueError, match="unknown cell 'gruu'; allowed: rnn, gru, gru_inside, lstm"):
        Recurrent(3, "gruu")


def test_the_state_is_dropped_by_one_mask_for_all_times():
    """tanh((h * z) U) with U = 1 and no input: z can be read off the first state, and the others follow from it."""
    layer, x, h = Recurrent(16, "rnn", dropout=0.5, variational=True), jnp.zeros((3, 4, 2)), normal(0, 3, 16)
    variables = jax.tree.map(jnp.zeros_like, make(layer, x))
    variables["params"]["recurrent_0"] = jnp.eye(16)
    y, _ = apply(layer, variables, x, (h,), train=True, rngs={"dropout": jax.random.key(0)})
    z = np.arctanh(y[:, 0]) / h
    assert set(np.round(z.ravel(), 3).tolist()) == {0, 2} and (z[0] != z[1]).any()
    for t in range(1, 4):
        np.testing.assert_allclose(y[:, t], np.tanh(y[:, t - 1] * z), atol=1e-5)
    plain, _ = apply(layer, variables, x, (h,))
    np.testing.assert_allclose(plain[:, 0], np.tanh(h), atol=1e-5)


@pytest.mark.parametrize("cell", list(CELLS))
def test_gradients_under_masks_of_the_state_are_autodiffs(cell):
    layer, x, weight = (
        Recurrent(5, cell, 2, dropout=0.4, variational=True),
        normal(0, 2, 4, 3),
        normal(1, 2, 4, 5),
    )
    variables = make(layer, x)

    def gradient(*off):
        def total(variables):
            y, _ = layer.apply(variables, x, train=True, rngs={"dropout": jax.random.key(0)})
            return jnp.sum(weight * y)

        with tricks.without(*off):
            return jax.jit(jax.grad(total))(variables)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradient(),
        gradient("recurrent_gradient"),
    )
