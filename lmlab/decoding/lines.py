"""Sampling lines from models of the next token given the last few, one token at a time on the host."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lmlab.experiment import Samples


def line_sampler(
    following: Callable[[Any], Callable[[np.ndarray], Any]], context: int, tokenizer: Any
) -> Callable[..., Samples]:
    """The `sample` of an experiment. following: variables -> (ids so far -> probabilities of the next token).

    A line begins with `context` of <end> and goes on to the next one; neither is printed.
    """
    end = tokenizer.specials.index("<end>")

    def sample(variables, key, *, num_samples: int = 10, max_tokens: int = 100) -> Samples:
        """Lines, each drawn token by token until its end.

        num_samples: how many lines
        max_tokens: the most tokens of a line
        """
        for name, value in (("num_samples", num_samples), ("max_tokens", max_tokens)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, received {value}")
        probabilities = following(variables)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        texts = []
        for _ in range(num_samples):
            ids, drawn = [end] * max(context, 1), []
            while len(drawn) < max_tokens:
                p = np.asarray(probabilities(np.array(ids + drawn, np.int32)), np.float64)
                drawn.append(int(rng.choice(len(p), p=p / p.sum())))
                if drawn[-1] == end:
                    break
            texts.append(tokenizer.decode([i for i in drawn if i != end]))
        return Samples(texts=texts)

    return sample
