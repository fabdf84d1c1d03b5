"""Sampling text: prompts in, strings out, for any model with `start` and `step`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from lmlab.decoding import beam, sampling
from lmlab.experiment import Samples


def text_sampler(model, tokenizer: Any, start: str = "\n", space: str = "") -> Callable[..., Samples]:
    """The `sample` of an experiment. model: `start(batch, length) -> cache`, `step(variables, cache, token)`.

    start: the text that stands for an empty prompt (the first token of the vocabulary if it has no such
    character); it is not printed. space: what stands between a prompt and what goes on from it, " " for words.
    """

    def likeliest(variables, text, beam_size, max_tokens):
        ids = _encode(text, tokenizer, start)
        step, cache = Partial(model.step, variables), model.start(1, len(ids) + max_tokens)
        found = jax.device_get(beam.search(step, cache, jnp.asarray(ids)[None], beam_size, max_tokens))
        pairs = zip(found.scores[0], found.tokens[0], strict=True)
        return "\n".join(
            f"{score:.3f}  {text}{space * bool(text)}{tokenizer.decode(ids)}" for score, ids in pairs
        )

    def sample(
        variables,
        key,
        *,
        prompt: str | Sequence[str] = "",
        max_tokens: int = 200,
        num_samples: int = 1,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        beam_size: int = 0,
    ) -> Samples:
        """Text that goes on from a prompt.

        prompt: where to begin; repeat the flag for several, of any lengths
        max_tokens: how many tokens to add
        num_samples: how many continuations of each prompt
        temperature: 0 takes the likeliest token, 1 samples, below 1 is more careful
        top_k: only the k likeliest tokens; 0: all
        top_p: only the likeliest tokens that make up this probability; 1: all
        min_p: only tokens at least this part as likely as the likeliest; 0: all
        beam_size: in place of drawing, the likeliest continuations that a beam so wide finds, with their log p; 0: draw
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, received {num_samples}")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if beam_size:
            return Samples(texts=[likeliest(variables, text, beam_size, max_tokens) for text in prompts])
        prompts = [text for text in prompts for _ in range(num_samples)]
        encoded = [_encode(text, tokenizer, start) for text in prompts]
        lengths = np.array([len(ids) for ids in encoded], np.int32)
        padded = np.zeros((len(encoded), lengths.max()), np.int32)
        for row, ids in zip(padded, encoded, strict=True):
            row[: len(ids)] = ids
        decoded = sampling.sample(
            Partial(model.step, variables),
            model.start(len(encoded), int(lengths.max()) + max_tokens),
            jnp.asarray(padded),
            jnp.asarray(lengths),
            key,
            max_tokens,
            temperature,
            min(top_k, tokenizer.vocab_size),
            top_p,
            min_p,
        )
        decoded = jax.device_get(decoded)
        rows = zip(prompts, decoded.tokens, lengths, decoded.lengths, strict=True)
        texts = [
            text + space * bool(text) + tokenizer.decode(ids[length:end]) for text, ids, length, end in rows
        ]
        return Samples(texts=texts, arrays=decoded._asdict())

    return sample


def _encode(text: str, tokenizer, start: str) -> np.ndarray:
    if text:
        return tokenizer.encode(text)
    try:
        return tokenizer.encode(start)[-1:]
    except ValueError:
        return np.zeros(1, np.int32)
