"""How well answers fit: BLEU of test sentences, near to the training data or not, and by length; known alignments."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmlab.data.pairs import NEAR, Pairs, nearest
from lmlab.data.rearranged import Rearranged
from lmlab.decoding.translate import Translator
from lmlab.evaluation import bleu


@dataclasses.dataclass
class Translation:
    """Greedy BLEU of the test sources, each once, against all its translations, and of those without near neighbours.

    near: a training source that shares NEAR of the words. The baseline answers as the nearest training source's
    translation does.
    """

    translator: Translator
    pairs: Pairs
    part: str = "test"
    held_out: bool = True

    def __call__(self, variables, key):
        references = self.pairs.references(self.part)
        sources, wanted = list(references), list(references.values())
        outputs = self.translator.texts(variables, self.pairs.encode_sources(sources), batch_size=256)
        answers, likeness = nearest(self.pairs.parts["train"], sources)
        far = np.flatnonzero(likeness < NEAR)
        score, signature = bleu.corpus_bleu(outputs, wanted)
        scalars = {
            "bleu": score,
            "bleu_nearest": bleu.corpus_bleu(answers, wanted)[0],
            "share_far": len(far) / len(sources),
            "exact": float(np.mean([o in w for o, w in zip(outputs, wanted, strict=True)])),
        }
        if len(far):
            chosen = [[each[i] for i in far] for each in (outputs, answers, wanted)]
            scalars["bleu_far"] = bleu.corpus_bleu(chosen[0], chosen[2])[0]
            scalars["bleu_nearest_far"] = bleu.corpus_bleu(chosen[1], chosen[2])[0]
        return scalars, {
            "sources": np.array(sources),
            "outputs": np.array(outputs),
            "statistics": bleu.statistics(outputs, wanted),
            "signature": np.array(signature),
        }


@dataclasses.dataclass
class Lengths:
    """Greedy BLEU of joined test pairs by the words of the source, `each` of each length."""

    translator: Translator
    pairs: Pairs
    edges: tuple[int, ...]
    each: int = 100
    held_out: bool = True

    def __call__(self, variables, key):
        examples = self.pairs.stratified("test", self.each, self.edges)
        sources, wanted = zip(*examples, strict=True)
        outputs = self.translator.texts(variables, self.pairs.encode_sources(sources))
        counts = bleu.statistics(outputs, [[target] for target in wanted])
        words = np.array([len(source.split()) for source in sources])
        found = bleu.by_length(counts, words, self.edges)
        groups = zip(found["above"], found["to"], found["bleu"], strict=True)
        scalars = {f"bleu_{above + 1}_to_{to}": float(score) for above, to, score in groups}
        return scalars, {"sources": np.array(sources), "outputs": np.array(outputs), "statistics": counts}


@dataclasses.dataclass
class Words:
    """The share of test words whose answer is right, letter by letter."""

    translator: Translator
    pairs: Rearranged
    held_out: bool = True

    def __call__(self, variables, key):
        examples = self.pairs.examples("test")
        outputs = self.translator.texts(variables, self.pairs.arrays("test")["source"], batch_size=256)
        right = [output == target for output, (_, target) in zip(outputs, examples, strict=True)]
        return {"exact": float(np.mean(right))}, {}


@dataclasses.dataclass
class Alignment:
    """error: the share of letters of test targets that look most at the state of another letter than the one they are.

    within_one: the share that looks at that letter or at one beside it, whose state has read it as well. mass: what
    falls on the letter itself. model: with `weights`, as of `lmlab.models.seq2seq.Seq2Seq`.
    """

    model: Any
    pairs: Rearranged
    held_out: bool = True

    def __call__(self, variables, key):
        arrays, known = self.pairs.arrays("test"), self.pairs.alignment("test")
        weights = jax.jit(self.model.weights)(variables, *map(jnp.asarray, arrays.values()))
        found, letters = np.asarray(jnp.argmax(weights, axis=-1)), known >= 0
        mass = np.take_along_axis(np.asarray(weights), np.maximum(known, 0)[..., None], 2)[..., 0]
        apart = np.abs(found - known)[letters]
        return {
            "error": float((apart > 0).mean()),
            "within_one": float((apart <= 1).mean()),
            "mass": float(mass[letters].mean()),
        }, {}
