"""Sentences whose subject is singular or plural and whose clause, before the verb, holds another noun of either number.

"The leaves , as the weather turned cold in New Haven , fell": the verb comes eleven words after the subject, and a
language model that is to write was or were must remember its number until then, past nouns of the other number. All
clauses have the same length, so that a word's distance from the subject is its place.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Int

from lmlab.data.corpus import Corpus

WORDS = """
    leaf tree river mountain house church castle tower bridge road street building station ship boat train engine
    car gun tank soldier officer king priest governor minister judge lawyer doctor teacher student child man woman boy
    girl father son daughter brother sister friend player team club band singer actor writer poet artist director
    producer critic scientist bird horse dog cat shark flower stone wall gate door window room garden farm village town
    city county island lake beach forest storm hurricane cloud planet moon cell protein enzyme book novel poem letter
    song album film episode game season story scene character hero god temple tomb grave coin painting statue map bomb
    army regiment battalion company division squadron fleet crew enemy rebel slave worker miner farmer pilot passenger
    guest member leader resident visitor tourist colony tribe nation family wife animal dinosaur fossil egg nest
    eye leg wing bone hospital school university college museum theater hotel restaurant port airport highway tunnel
    canal dam mill market shop store bank camp hill cave explosion battle war election campaign protest crime victim
    witness prisoner agent"""
SINGULAR = tuple(WORDS.split())
IRREGULAR = {
    "child": "children",
    "hero": "heroes",
    "leaf": "leaves",
    "man": "men",
    "wife": "wives",
    "woman": "women",
}
CLAUSES = (
    "as the {} turned cold in New Haven",
    "after the {} had returned from the north",
    "when the war ended and the {} left",
    "in spite of the {} on the coast",
    "with the {} in the middle of winter",
    "which the old {} had seen in London",
    "because of the fire that reached the {}",
    "despite the work of the {} that summer",
    "long before the {} came to the area",
    "according to the {} of the local church",
    "in the year that the {} first appeared",
    "once the {} had moved to the west",
)
LENGTH = 8  # words of a clause
VERB = LENGTH + 3  # the verb's distance from the subject: two commas and the clause are between
VERBS = (
    "fell",
    "remained",
    "moved",
    "disappeared",
    "returned",
    "stood",
    "came",
    "appeared",
    "continued",
    "stopped",
)
"""Past tenses, which do not show number."""


def plural(noun: str) -> str:
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


@dataclasses.dataclass(frozen=True)
class Sentences:
    """Texts of words up to the verb, the subject being the second; of each, its subject's number and the other noun's.

    noun: which noun the subject is, for intervals over nouns.
    """

    texts: tuple[str, ...]
    plural: Bool[np.ndarray, "N"]
    other_plural: Bool[np.ndarray, "N"]
    noun: Int[np.ndarray, "N"]


def sentences(nouns: Sequence[str], each: int, seed: int) -> Sentences:
    """Of each noun in each number, and with the other noun in each number, `each` sentences.

    The other noun is one of the same list. So the numbers of the two say nothing of each other.
    """
    if len(nouns) < 2:
        raise ValueError(f"at least 2 nouns are needed, received {len(nouns)}")
    if each < 1:
        raise ValueError(f"each must be at least 1, received {each}")
    rng = np.random.default_rng(seed)
    noun, numbers, others = (
        part.reshape(-1) for part in np.meshgrid(np.arange(len(nouns)), [0, 1], [0, 1] * each, indexing="ij")
    )
    other = (noun + rng.integers(1, len(nouns), len(noun))) % len(nouns)
    chosen = [rng.integers(len(these), size=len(noun)) for these in (CLAUSES, VERBS)]

    def form(which, number):
        return plural(nouns[which]) if number else nouns[which]

    texts = tuple(
        f"The {form(n, a)} , {CLAUSES[clause].format(form(o, b))} , {VERBS[verb]}"
        for n, a, o, b, clause, verb in zip(noun, numbers, other, others, *chosen, strict=True)
    )
    return Sentences(texts, numbers == 1, others == 1, noun)


def parted(known: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """The nouns of which both forms are known, in two parts with no noun in common: three of four, and the fourth."""
    nouns = [noun for noun in SINGULAR if known(noun) and known(plural(noun))]
    second = nouns[::4]
    return [noun for noun in nouns if noun not in second], second


def grammar(each: int, seed: int) -> str:
    """A text of such sentences, whose verb is was or were by the number of the subject; short ones are between."""
    made, rng = sentences(SINGULAR, each, seed), np.random.default_rng(seed)
    lines = []
    for i in rng.permutation(len(made.texts)):
        *words, verb = made.texts[i].split()
        be, short = ("was", "were")[int(made.plural[i])], rng.integers(LENGTH)
        cut = [*words[: 3 + short], ","] if short else words[:2]
        lines += [[*words, be], [*cut, be], [*words, verb]]
    return "".join(" ".join([*line, "there .\n"]) for line in lines)


class Grammar(Corpus):
    """The text of `grammar`, of which each part is drawn by itself."""

    @functools.cached_property
    def pieces(self) -> dict[str, str]:
        return {name: grammar(4 if name == "train" else 1, seed) for seed, (name, _) in enumerate(self.parts)}
