import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from lmlab.figures import maps, style, table


def values(figure, name):
    found = {(row, column): value for axes, *_, row, column, value in table.rows(figure) if axes == name}
    high, wide = np.array(list(found)).max(axis=0) + 1
    return np.array([found[i, j] for i in range(high) for j in range(wide)]).reshape(high, wide)


def weights(*shape):
    raw = np.tril(np.random.default_rng(0).random(shape)).astype(np.float32)
    return raw / raw.sum(-1, keepdims=True)


def labels(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def test_attention_has_a_panel_for_each_head(tmp_path):
    drawn = weights(2, 3, 4, 4)
    figure = maps.attention(jnp.asarray(drawn), list("a \nb"), list("a \nb"))
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert len(panels) == 6
    for layer in range(2):
        for head in range(3):
            assert np.array_equal(values(figure, f"layer {layer + 1}, head {head + 1}"), drawn[layer, head])
    assert labels(panels[3].xaxis) == ["a", "␣", "⏎", "b"] == labels(panels[0].yaxis)
    assert panels[0].get_title() == "head 1" and panels[3].get_ylabel() == "layer 2"
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("key", "query")
    assert len({axes.images[0].norm.vmax for axes in panels}) == 1  # one scale for all heads
    style.save(figure, tmp_path, "attention")


def test_alignment_labels_both_axes(tmp_path):
    drawn = np.random.default_rng(0).dirichlet(np.ones(3), size=2)
    figure = maps.alignment(drawn, ["le", "chat"], ["the", "cat", "$"])
    axes = figure.axes[0]
    assert np.array_equal(values(figure, "alignment"), drawn)
    assert (labels(axes.yaxis), labels(axes.xaxis)) == (["le", "chat"], ["the", "cat", "$"])
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("target", "source")
    style.save(figure, tmp_path, "alignment")


def test_activations_sort_units_and_average_many(tmp_path):
    few = np.random.default_rng(0).random((5, 4))
    many = np.random.default_rng(1).normal(size=(5, 2 * maps.UNITS))
    figure = maps.activations({"update gate": few, "candidate": many}, list("abcde"))
    assert np.array_equal(values(figure, "update gate"), few[:, np.argsort(-few.mean(0))].T)
    order = many[:, np.argsort(-many.mean(0))].T
    assert np.allclose(values(figure, "candidate"), (order[0::2] + order[1::2]) / 2)
    update, candidate = (axes for axes in figure.axes if axes.get_label() != "<colorbar>")
    assert update.images[0].norm.vmin == 0 and candidate.images[0].norm.vmin == -candidate.images[0].norm.vmax
    assert candidate.get_ylabel().startswith(f"{2 * maps.UNITS} units") and labels(candidate.xaxis) == list(
        "abcde"
    )
    style.save(figure, tmp_path, "activations")


def test_as_many_tokens_as_weights():
    with pytest.raises(ValueError, match=r"alignment: weights for \(2, 3\) tokens, but \(2, 2\)"):
        maps.alignment(weights(2, 3), ["a", "b"], ["a", "b"])
    with pytest.raises(ValueError, match="attention: weights for"):
        maps.attention(weights(1, 1, 3, 3), list("ab"), list("abc"))
    with pytest.raises(ValueError, match="activations of gate: weights for"):
        maps.activations({"gate": weights(3, 2)}, list("ab"))
    with pytest.raises(ValueError, match="received no gate"):
        maps.activations({}, ["a"])


def test_an_animation_of_decoding_writes_a_row_at_a_time():
    """Nothing of the matrix at first, all of it at last; in between no row changes that was written."""
    weights = np.random.default_rng(0).uniform(0.2, 1, (3, 4))
    frames = maps.decoding(weights, ["a", "b", "c"], ["w", "x", "y", "z"])
    assert frames.shape[:2] == (4, 1) and frames.shape[-1] == 3 and frames.dtype == np.uint8
    changed = [(one != other).any(-1)[0] for one, other in itertools.pairwise(frames)]
    rows = [np.flatnonzero(each.any(1)) for each in changed]
    assert all(len(each) for each in rows)
    assert rows[0].max() < rows[1].max() < rows[2].max() and not (changed[0] & changed[2]).any()
