"""The workloads on lmlab: what `lmlab train` and `lmlab sample` run, on generated data."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.tree_util import Partial

from lmlab import config as configs
from lmlab.data import images, text
from lmlab.data.pairs import SPECIALS
from lmlab.decoding import sampling as decoding
from lmlab.decoding.translate import Translator
from lmlab.experiment import Experiment
from lmlab.layers.linear import matmul
from lmlab.models.autoencoder import Autoencoder
from lmlab.models.classifier import CNN, Classifier, Classify
from lmlab.models.diffusion import Denoiser, Diffusion, Process
from lmlab.models.gpt import GPT
from lmlab.models.nplm import NPLM
from lmlab.models.recurrent_lm import Carried, RecurrentLM
from lmlab.models.seq2seq import Seq2Seq
from lmlab.models.unet import UNet
from lmlab.models.vae import VAE, VariationalBound
from lmlab.sources import Resident
from lmlab.tasks import LastToken, NextTargetToken, NextToken, Reconstruct
from lmlab.training import optimizer, parallel
from lmlab.training.loop import Trainer

VOCAB, TOKENS = 65, 1_000_000


def tokens(vocab_size: int = VOCAB, shape=TOKENS, least: int = 0) -> np.ndarray:
    return np.random.default_rng(0).integers(least, vocab_size, shape).astype(np.int32)


def training(task, source, precision: str, batch_size: int, **leaves):
    """(run, facts): the trainer's own compiled loop."""
    parallel.prepare(precision)
    config = configs.base(batch_size=batch_size, precision=precision, optimizer=leaves)
    build = functools.partial(optimizer.build, **config.optimizer)
    trainer = Trainer(Experiment(task=task, optimizer=build, train_data=lambda: source), config)
    layout = trainer.layout
    state, data = layout.create(trainer.make), layout.everywhere(source.data)
    sums = layout.everywhere(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), trainer.metric_shapes))
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    compiled = layout.compile(trainer.step, source, trainer.make)
    compiled = compiled.lower(state, sums, data, np.int32(1)).compile()

    def run(steps: int) -> None:
        nonlocal state, sums
        state, sums = compiled(state, sums, data, np.int32(steps))
        jax.block_until_ready(sums)

    return run, {"parameters": parameters}


def gpt(*, context, batch_size, precision="float32", **sizes):
    task = NextToken(GPT(VOCAB, context=context, bias=False, **sizes))
    source = text.windows(tokens(), context, batch_size, 0)
    return training(task, source, precision, batch_size, b2=0.99, weight_decay=0.1, clip=1.0)


def recurrent(*, context, batch_size, precision="float32", **sizes):
    source = text.windows(tokens(), context, batch_size, 0)
    return training(NextToken(RecurrentLM(VOCAB, **sizes)), source, precision, batch_size, clip=1.0)


def nplm(*, vocab_size, num_examples, batch_size, precision="float32", **sizes):
    model = NPLM(vocab_size, **sizes)
    rows = tokens(vocab_size, (num_examples, model.context + 1))
    source = Resident.of({"tokens": rows}, batch_size, 0)
    return training(LastToken(model), source, precision, batch_size)


def carried(*, vocab_size, context, batch_size, precision="float32", **sizes):
    model = RecurrentLM(vocab_size, "lstm", tie_embeddings=True, **sizes)
    source = text.streams(tokens(vocab_size), context, batch_size, 0)
    return training(Carried(model), source, precision, batch_size, clip=0.25)


def seq2seq(*, vocab_size, length, num_examples, batch_size, precision="float32", **sizes):
    ids = tokens(vocab_size, (num_examples, 2 * length + 1), len(SPECIALS))
    source = Resident.of({"source": ids[:, :length], "target": ids[:, length:]}, batch_size, 0)
    task = NextTargetToken(Seq2Seq(vocab_size, vocab_size, **sizes))
    return training(task, source, precision, batch_size, clip=1.0)


class Unread:
    """A tokenizer of ids that nobody reads."""

    specials = SPECIALS

    def decode(self, ids) -> str:
        return ""


def translate(
    *,
    vocab_size,
    num_sentences,
    shortest,
    longest,
    max_tokens,
    precision="float32",
    d_model,
    d_embed,
    **options,
):
    parallel.prepare(precision)
    model = Seq2Seq(vocab_size, vocab_size, d_model=d_model, d_embed=d_embed)
    lengths = shortest + np.arange(num_sentences) % (longest - shortest + 1)
    rows = tokens(vocab_size, (num_sentences, longest), len(SPECIALS))
    rows[np.arange(longest) >= lengths[:, None]] = 0
    variables = nn.unbox(jax.jit(model.init)(jax.random.key(0), rows[:1], rows[:1]))
    translator = Translator(model, Unread(), np.asarray, max_tokens)

    def run(calls: int) -> None:
        for _ in range(calls):
            translator.answers(variables, rows, **options)

    return run, {}


def pictures(task, *, num_examples, batch_size, precision="float32"):
    """(run of steps, facts, steps an epoch) of training on images of 28 x 28."""
    pixels = np.random.default_rng(0).integers(0, 256, (num_examples, 28, 28)).astype(np.uint8)
    labels = np.arange(num_examples, dtype=np.int32) % 10
    source = images.resident({"image": pixels, "label": labels}, batch_size, 0)
    return *training(task, source, precision, batch_size), source.steps_per_epoch


def autoencoder(*, features, code, **sizes):
    run, facts, epoch = pictures(Reconstruct(Autoencoder(features=features, code=code)), **sizes)
    return lambda epochs: run(epochs * epoch), facts


def vae(*, latent, hidden, **sizes):
    run, facts, epoch = pictures(VariationalBound(VAE(latent=latent, hidden=tuple(hidden))), **sizes)
    return lambda epochs: run(epochs * epoch), facts


def cnn(**sizes):
    return pictures(Classify(Classifier(CNN())), num_examples=10_000, **sizes)[:2]


def diffusion(features) -> Diffusion:
    return Diffusion(Denoiser(UNet(1, tuple(features)), 1000), Process())


def unet(*, features, **sizes):
    return pictures(diffusion(features), num_examples=10_000, **sizes)[:2]


def ddim(*, features, batch_size, num_steps, precision="float32"):
    parallel.prepare(precision)
    task, shape = diffusion(features), (batch_size, 28, 28)
    variables = nn.unbox(
        jax.jit(task.model.init)(jax.random.key(0), jnp.zeros(shape), jnp.ones(batch_size, jnp.int32))
    )

    def run(calls: int) -> None:
        for number in range(calls):
            drawn = task.draw(variables, jax.random.key(number), shape, num_steps, 0.0, bound=1.0)
            jax.block_until_ready(drawn)

    return run, {}


def sampling(*, num_tokens, batch_size, precision="float32", **sizes):
    parallel.prepare(precision)
    model = GPT(VOCAB, context=num_tokens, bias=False, **sizes)
    variables = nn.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))
    prompts, lengths = jnp.zeros((batch_size, 1), jnp.int32), jnp.ones(batch_size, jnp.int32)
    calls = 0

    def run(steps: int) -> None:
        nonlocal calls
        for _ in range(steps):
            calls += 1
            cache, key = model.start(batch_size, num_tokens), jax.random.key(calls)
            step = Partial(model.step, variables)
            drawn = decoding.sample(step, cache, prompts, lengths, key, num_tokens - 1, 0.8, 40)
            jax.block_until_ready(drawn)

    return run, {}


def product(*, rows, inner, columns, precision="float32"):
    """x w with x (rows, inner) and w (inner, columns): one program of many, since calling one costs as well."""
    parallel.prepare(precision)
    draw = np.random.default_rng(0).normal
    x, w = jnp.float32(draw(size=(rows, inner))), jnp.float32(draw(size=(inner, columns)))

    @jax.jit
    def several(x, w, n):
        # Each is given what the one before it made, so that none can be left out.
        return jax.lax.fori_loop(0, n, lambda _, x: x.at[0, 0].add(1e-9 * matmul(x, w)[0, 0]), x)

    return lambda steps: jax.block_until_ready(several(x, w, steps)), {}


def read(*, numbers):
    """The sum of float32 numbers: one pass through memory."""
    x = jnp.ones(numbers)
    total = jax.jit(jnp.sum)

    def run(steps: int) -> None:
        for _ in range(steps):
            total(x).block_until_ready()

    return run, {}
