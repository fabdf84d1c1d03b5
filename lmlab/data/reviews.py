"""Sentences of film reviews that praise or blame (Pang and Lee 2005), or such sentences by a small grammar."""

import functools
import random

import numpy as np

from lmlab.data import locate, text
from lmlab.data.tokenizers import WordTokenizer, tokenizer_from_json
from lmlab.experiment import Assets

KINDS = ("neg", "pos")
"""By label, as the files are named."""
PARTS = ("train", "validation", "test")
GOOD = ("good", "great", "moving", "funny", "clever", "charming", "fresh", "gripping")
BAD = ("bad", "dull", "tedious", "clumsy", "stale", "bland", "hollow", "predictable")
NOUNS = ("film", "plot", "cast", "script", "ending", "music", "story", "camera")


def grammar(count: int, seed: int) -> list[tuple[str, int]]:
    """(sentence, label): "the plot is (not) (really) dull", joined with one that agrees; "not" turns a word round."""
    draw, made = random.Random(seed), []
    for _ in range(count):
        label, clauses = draw.randrange(2), []
        for _ in range(draw.randint(1, 3)):
            turned = draw.random() < 0.3
            adjective = draw.choice(GOOD if bool(label) != turned else BAD)
            adverb = draw.choice(("", "really ", "quite "))
            clauses.append(f"the {draw.choice(NOUNS)} is {'not ' if turned else ''}{adverb}{adjective}")
        made.append((" and ".join(clauses) + " .", label))
    return made


class Reviews:
    """Sentences and labels (1: praise) in parts of 80, 10 and 10 %, shuffled by `split_seed`.

    path: the folder of rt-polarity.neg and rt-polarity.pos, or the same with .gz; "": 2,000 sentences of `grammar`.
    Words, what is between white space, are known that are in the train part `min_count` times. length: the most words
    of a sentence; the rest is cut off. A run keeps the hash of its text, and refuses to go on with another.
    """

    def __init__(self, path: str, assets: Assets, split_seed: int = 0, min_count: int = 1, length: int = 60):
        if length < 1:
            raise ValueError(f"length must be at least 1, received {length}")
        self.path, self.assets, self.split_seed = path, assets, split_seed
        self.min_count, self.length = min_count, length

    @functools.cached_property
    def tokenizer(self) -> WordTokenizer:
        def make():
            words = "\n".join(sentence for sentence, _ in self.parts["train"])
            return WordTokenizer.train(words, 0, ("<pad>", "<unk>"), self.min_count).to_json()

        return tokenizer_from_json(self.assets.get("tokenizer.json", make))

    @functools.cached_property
    def sentences(self) -> list[tuple[str, int]]:
        if not self.path:
            return grammar(2000, 0)
        folder = locate.text_folder(self.path)
        found = []
        for label, kind in enumerate(KINDS):
            paths = [folder / f"rt-polarity.{kind}{end}" for end in ("", ".gz")] if folder else []
            paths = [path for path in paths if path.is_file()]
            if not paths:
                raise FileNotFoundError(
                    f"no rt-polarity.{kind} or rt-polarity.{kind}.gz in {self.path!r}, nor in it below LMLAB_DATA;"
                    " set --config.data.path=FOLDER, or LMLAB_DATA; the variant demo needs no file"
                )
            found += [(line.strip(), label) for line in text.read(paths[0]).splitlines() if line.strip()]
        return found

    @functools.cached_property
    def parts(self) -> dict[str, list[tuple[str, int]]]:
        sentences = list(self.sentences)
        joined = "\n".join(f"{label} {sentence}" for sentence, label in sentences)
        text.check_same(self.assets, text.fingerprint(joined, self.path or "a grammar"))
        random.Random(self.split_seed).shuffle(sentences)
        return dict(zip(PARTS, text.split(sentences, (0.8, 0.1, 0.1)), strict=True))

    def arrays(self, part: str) -> dict[str, np.ndarray]:
        """{"tokens": int32 [N, T], "label": int32 [N]}, <pad> (0) behind the sentences; T: at most `length`."""
        longest = max(len(sentence.split()) for sentence, _ in self.parts["train"])
        tokens = np.zeros((len(self.parts[part]), min(self.length, longest)), np.int32)
        for row, (sentence, _) in zip(tokens, self.parts[part], strict=True):
            ids = self.tokenizer.encode(sentence)[: len(row)]
            row[: len(ids)] = ids
        return {"tokens": tokens, "label": np.array([label for _, label in self.parts[part]], np.int32)}
