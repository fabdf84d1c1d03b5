"""The captioner against its equations written out in NumPy, step by step and padded; where it looks; its experiment."""

import functools
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import lmlab
from lmlab.decoding import beam
from lmlab.decoding.translate import Answer
from lmlab.experiment import load_module
from lmlab.models.captioner import Caption, Captioner, doubly_stochastic

pytestmark = pytest.mark.usefixtures("compiled_in_haste")
PAPER = Path(__file__).parents[2] / "experiments" / "captioner.py"
TINY = dict(image_shape=(8, 12), features=(4, 5, 6), halvings=2, d_embed=7, d_model=8, d_attention=9)


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


@pytest.fixture(scope="module")
def model():
    return Captioner(13, **TINY)


@pytest.fixture(scope="module")
def variables(model):
    """Every parameter drawn, those too that begin at 0."""
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), images(3), captions(3, 5)))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(
        tree, [jnp.asarray(0.4 * rng.standard_normal(leaf.shape), jnp.float32) for leaf in leaves]
    )


def images(count):
    return jnp.asarray(np.random.default_rng(2).random((count, 8, 12)), jnp.float32)


def captions(count, length):
    return jnp.asarray(np.random.default_rng(3).integers(1, 13, (count, length)), jnp.int32)


apply = functools.partial(jax.jit, static_argnums=(0,))(
    lambda model, variables, *inputs: model.apply(variables, *inputs)
)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_the_equations_of_the_paper(model, variables):
    """Eq. 1 to 7 and 13, a location and a word at a time, from the features on."""
    image, tokens = images(3), captions(3, 5)
    logits, weights = apply(model, variables, image, tokens)
    p = jax.tree.map(np.asarray, variables["params"])
    encoded = np.asarray(model.apply(variables, image, method="locations"))
    assert encoded.shape == (3, 6, 6) and model.grid == (2, 3)
    for b in range(3):
        a = encoded[b]
        h, c = np.split(np.tanh(a.mean(0) @ p["first"]["kernel"] + p["first"]["bias"]), 2)
        for t in range(5):
            attend = p["attend"]
            query = h @ attend["of_query"]["kernel"] + attend["of_query"]["bias"]
            scores = [np.tanh(query + a[i] @ attend["of_key"]["kernel"]) @ attend["v"] for i in range(6)]
            alpha = softmax(np.array(scores))
            np.testing.assert_allclose(weights[b, t], alpha, atol=1e-5)
            beta = sigmoid(h @ p["gate"]["kernel"] + p["gate"]["bias"])
            z = beta * sum(alpha[i] * a[i] for i in range(6))
            y = p["embed"]["embedding"][tokens[b, t]]
            # T of the paper: one affine map of (E y, h, z)
            joined = np.concatenate([y, h, z])
            affine = np.concatenate([p["word"]["kernel"], p["recurrent"], p["context"]["kernel"]])
            i, f, g, o = np.split(joined @ affine + p["word"]["bias"], 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            deep = (
                y + h @ p["from_state"]["kernel"] + p["from_state"]["bias"] + z @ p["from_context"]["kernel"]
            )
            np.testing.assert_allclose(logits[b, t], deep @ p["head"]["kernel"], rtol=1e-3, atol=1e-4)


def test_locations_go_by_rows_and_have_biases_of_their_own(model, variables):
    blank, lit = jnp.zeros((1, 8, 12)), jnp.zeros((1, 8, 12)).at[0, 7, 11].set(1)
    see = jax.jit(lambda params, image: model.apply({"params": params}, image, method="locations")[0])
    plain = see(variables["params"], blank)

    def moved(other):
        return (np.abs(other - plain).sum(-1) > 0).reshape(model.grid)

    ink = moved(see(variables["params"], lit))
    assert ink[1, 2] and not ink[:, 0].any(), "windows do not span the image"
    place = variables["params"]["place"].at[0, 1].add(9)
    bias = moved(see({**variables["params"], "place": place}, blank))
    assert bias.tolist() == [[False, True, False], [False] * 3]


def test_step_by_step_equals_at_once(model, variables):
    image, tokens = images(3), captions(3, 5)
    expected, _ = apply(model, variables, image, tokens)
    step, carry = model.begin(variables, image)
    step = jax.jit(step)
    for t in range(5):
        logits, carry = step(carry, tokens[:, t])
        np.testing.assert_allclose(logits, expected[:, t], atol=1e-5)


def test_hypotheses_share_the_locations_of_their_image(model, variables):
    """A beam's best is scored as its words are by the whole model; a beam of one takes the likeliest word each time."""
    image, start = images(3), jnp.ones((3, 1), jnp.int32)
    step, carry = jax.jit(model.begin)(variables, image)

    def whole(hypotheses):
        """Log-probabilities of all words at each place, of the i-th hypothesis of each image."""
        inputs = jnp.concatenate([start, hypotheses[:, :-1]], axis=1)
        return jax.nn.log_softmax(apply(model, variables, image, inputs)[0])

    found = beam.search(step, carry, start, 3, 5, end=2)
    for i in range(3):
        tokens = found.tokens[:, i]
        logs = jnp.take_along_axis(whole(tokens), tokens[..., None], 2)[..., 0]
        counted = jnp.arange(5)[None] < found.lengths[:, i, None]
        np.testing.assert_allclose(found.scores[:, i], (logs * counted).sum(1), atol=1e-4)
    greedy = beam.search(step, carry, start, 1, 5)
    np.testing.assert_array_equal(whole(greedy.tokens[:, 0]).argmax(-1), greedy.tokens[:, 0])


def test_no_word_sees_those_after_it_and_every_word_sees_the_image(model, variables):
    image, tokens = images(3), captions(3, 5)
    logits, weights = apply(model, variables, image, tokens)
    after = apply(model, variables, image, tokens.at[:, 3:].set(1 + tokens[:, 3:] % 12))
    for whole, changed in zip((logits, weights), after, strict=True):
        np.testing.assert_array_equal(whole[:, :3], changed[:, :3])
    assert (logits[:, 3:] != after[0][:, 3:]).any(-1).all()
    slope = jax.jit(jax.jacrev(lambda image: model.apply(variables, image, tokens)[0].sum(-1)))(image)
    assert (np.abs(slope).sum((3, 4))[np.arange(3), :, np.arange(3)] > 0).all()
    assert (slope[0, :, 1] == 0).all(), "of its own row"


def test_attention_sums_to_one_and_goes_by_words(model, variables):
    image, tokens = images(3), captions(3, 6)
    weights = jax.jit(model.weights)(variables, image, tokens)
    assert weights.shape == (3, 5, 6) and (weights > 0).all()
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(weights, apply(model, variables, image, tokens[:, :-1])[1], atol=1e-6)
    assert (np.abs(weights[:, 1:] - weights[:, :-1]).max(-1) > 1e-4).all(), "it moves"


def test_the_penalty_written_out():
    rng = np.random.default_rng(0)
    weights = softmax(rng.standard_normal((3, 4, 5))).astype(np.float32)
    lengths = [4, 2, 0]
    expected = []
    for b, length in enumerate(lengths):
        total = 0.0
        for place in range(5):
            total += (1 - sum(weights[b, t, place] for t in range(length))) ** 2
        expected.append(total)
    mask = jnp.arange(4)[None] < jnp.array(lengths)[:, None]
    np.testing.assert_allclose(doubly_stochastic(jnp.asarray(weights), mask), expected, rtol=1e-5)
    even = jnp.full((1, 5, 5), 0.2)
    np.testing.assert_allclose(doubly_stochastic(even, jnp.ones((1, 5), bool)), 0, atol=1e-10)


def test_loss_is_the_mean_by_words_of_captions_scored_alone(model, variables):
    """Captions of different lengths in one batch, with padding of both kinds, and each by itself without."""
    task, lengths = Caption(model, 0.3), (2, 5, 2)
    image, tokens = images(4), captions(4, 6)
    padded = jnp.where(jnp.arange(6)[None] <= jnp.array((*lengths, 5))[:, None], tokens, 0)
    batch = {"image": image, "tokens": jnp.pad(padded, ((0, 0), (0, 2))), "mask": jnp.array([1.0, 1, 1, 0])}
    loss = jax.jit(lambda batch: task.loss(variables["params"], {}, batch, None, False)[:2])
    mean, metrics = loss(batch)
    nats = penalty = 0.0
    for i, length in enumerate(lengths):
        alone = tokens[i : i + 1, : length + 1]
        logits, weights = apply(model, variables, image[i : i + 1], alone[:, :-1])
        chances = softmax(np.asarray(logits[0], np.float64))
        nats -= sum(np.log(chances[t, alone[0, t + 1]]) for t in range(length))
        penalty += ((1 - np.asarray(weights[0]).sum(0)) ** 2).sum()
    np.testing.assert_allclose(mean.value, (nats + 0.3 * penalty) / sum(lengths), rtol=1e-4)
    np.testing.assert_allclose(metrics["cross_entropy"].value, nats / sum(lengths), rtol=1e-4)
    np.testing.assert_allclose(metrics["penalty"].value, penalty / 3, rtol=1e-4)
    assert mean.count == sum(lengths)
    alone = {name: values[1:2] for name, values in batch.items() if name != "mask"}
    np.testing.assert_allclose(loss(alone)[0].count, 5)


def test_one_tiny_batch_is_learnt_by_heart_and_by_the_image_alone():
    model = Captioner(9, (8, 8), (8, 8), 1, 8, 16, 8)
    batch = {
        "image": jnp.asarray(np.random.default_rng(0).random((4, 8, 8)), jnp.float32),
        # all begin alike: the first words can be known from the image alone
        "tokens": jnp.array([[1, 3, 4, 2], [1, 4, 3, 2], [1, 5, 2, 0], [1, 6, 2, 0]], jnp.int32),
    }
    task, adam = Caption(model, 0.0), optax.adam(1e-2)
    params = nn.meta.unbox(jax.jit(task.init)(jax.random.key(0), batch)[0])

    @jax.jit
    def train(params):
        def update(carry, _):
            params, state = carry
            slope = jax.grad(lambda p: task.loss(p, {}, batch, None, False)[0].value)(params)
            changes, state = adam.update(slope, state, params)
            return (optax.apply_updates(params, changes), state), None

        return jax.lax.scan(update, (params, adam.init(params)), length=200)[0][0]

    score = jax.jit(lambda p, batch: task.loss(p, {}, batch, None, False)[1])
    params = train(params)
    assert score(params, batch)["cross_entropy"].value < 0.2
    other = score(params, {**batch, "image": batch["image"][::-1]})
    assert other["cross_entropy"].value > 1


def test_dropout_falls_in_training_only():
    model = Captioner(13, **TINY, dropout=0.5)
    image, tokens = images(3), captions(3, 5)
    variables = jax.jit(model.init)(jax.random.key(0), image, tokens)
    run = jax.jit(
        lambda train: model.apply(variables, image, tokens, train, rngs={"dropout": jax.random.key(1)})[0],
        static_argnums=0,
    )
    np.testing.assert_allclose(run(False), apply(model, variables, image, tokens)[0], atol=1e-6)
    assert np.abs(run(False) - run(True)).max() > 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 0}, "d_model must be at least 1, received 0"),
        ({"features": ()}, r"features must be one width or more, each at least 1, received \(\)"),
        ({"halvings": 4}, "halvings must be from 0 to 3, received 4"),
        ({"image_shape": (8, 10)}, r"image_shape must be multiples of 4, for 2 halvings; received \(8, 10\)"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
    ],
)
def test_impossible_models_are_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message):
        Captioner(13, **{**TINY, **changes})


def test_a_wrong_image_and_a_wrong_penalty_are_refused(model, variables):
    with pytest.raises(ValueError, match=r"images must be \(8, 12\), received \(8, 8\)"):
        model.begin(variables, images(1)[:, :, :8])
    with pytest.raises(ValueError, match="penalty must be at least 0, received -1"):
        Caption(model, -1)


# -- the experiment ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paper():
    return load_module(PAPER)


def test_a_cell_counts_by_its_part_within_the_box(paper):
    """Against pixels: weights spread over the pixels of their cells, and summed over those of the box."""
    rng = np.random.default_rng(0)
    low, side = rng.integers(0, 8, (5, 2, 2)), rng.integers(0, 9, (5, 2, 2))
    boxes = np.concatenate([low, np.minimum(low + side, [8, 12])], axis=-1)
    weights = softmax(rng.standard_normal((5, 3, 6)))
    found = np.einsum("ntl,ndl->ndt", weights, paper.inside(boxes, (8, 12), (2, 3)))
    pixels = np.kron(weights.reshape(5, 3, 2, 3), np.ones((4, 4)) / 16)
    for n, d in np.ndindex(5, 2):
        y0, x0, y1, x1 = boxes[n, d]
        np.testing.assert_allclose(found[n, d], pixels[n, :, y0:y1, x0:x1].sum((1, 2)), atol=1e-6)


def test_the_mass_is_that_at_the_word_of_the_digit(paper):
    """Where a model looks at one cell for the k-th word, in the box or not, the mass says so."""
    looked = np.zeros((2, 4, 4), np.float32)
    looked[0, [0, 1, 2, 3], [3, 0, 3, 1]] = 1  # for the word at place 2, which is t = 1, at cell 0
    looked[1, [0, 1, 2, 3], [0, 0, 2, 0]] = 1
    image = np.zeros((2, 8, 8), np.uint8)
    tokens = np.array([[1, 8, 5, 9, 2], [1, 8, 8, 5, 2]], np.int32)
    data = SimpleNamespace(
        references=lambda part: (image, [["a five"], ["a a five"]]),
        arrays=lambda part: {
            "boxes": np.array([[[0, 0, 4, 2], [4, 4, 8, 8]], [[0, 0, 4, 4], [0] * 4]]),
            "named": np.array([[2, 3], [3, 0]], np.int32),
            "tokens": tokens,
        },
    )
    describer = SimpleNamespace(
        model=SimpleNamespace(grid=(2, 2)),
        answers=lambda variables, image, size: [[Answer(text, 0.0, tokens[0])] for text in ("a five", "a")],
        weights=lambda *_: looked,
    )
    scalars, arrays = paper.Described(describer, data)({}, None)
    assert scalars["exact"] == scalars["exact_beam"] == 0.5
    # half of cell 0; all of cell 3; none of cell 2
    np.testing.assert_allclose(scalars["mass"], (0.5 + 1 + 0) / 3)
    np.testing.assert_allclose(scalars["mass_even"], (1 / 8 + 1 / 4 + 1 / 4) / 3)
    moved = paper.by_distance(**arrays)
    assert moved == {-2: 1, -1: 0, 0: 0.75, 1: 0, 2: 0}


@pytest.mark.slow
def test_a_folder_of_images_trains_and_tells(paper, tmp_path):
    rng = np.random.default_rng(0)
    lines = []
    for i in range(20):
        side = i % 2
        picture = np.zeros((20, 30), np.uint8)
        picture[:, 15 * side : 15 * side + 15] = rng.integers(150, 256, (20, 15))
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png\tBright on the {'right' if side else 'left'}.\n")
    (tmp_path / "captions.tsv").write_text("".join(lines))
    tiny = {"encoder.features": (8,), "encoder.halvings": 1, "data.size": (4, 8), "batch_size": 8}
    tiny |= {f"model.{width}": 8 for width in ("d_embed", "d_model", "d_attention")}
    short = {
        "duration": "60 steps",
        "evaluate_every": "0",
        "optimizer.learning_rate": 2e-2,
        "parallel.data": 1,
    }
    overrides = {"data.path": str(tmp_path), **tiny, **short}
    run = lmlab.train(f"{PAPER}:folder,cpu", tmp_path / "run", overrides)
    scores = run.evaluate()
    assert scores["captions/exact"] == scores["captions/exact_beam"] == 1 and scores["captions/bleu"] > 99
    assert "captions/mass" not in scores
    told = run.sample(image=[str(tmp_path / "0.png"), str(tmp_path / "1.png")])
    best = [text.splitlines()[1].split("  ")[1] for text in told.texts]
    assert best == ["bright on the left .", "bright on the right ."]
    with pytest.raises(ValueError, match=r"no image 'none\.png'"):
        run.sample(image=str(tmp_path / "none.png"))
