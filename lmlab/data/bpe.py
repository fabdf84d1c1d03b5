"""Byte pair encoding to be read (Gage 1994; Sennrich et al. 2016, algorithm 1); `BPETokenizer` is the one to use.

    >>> merges = learn({tuple("aaabdaaabac"): 1}, 3)
    >>> for step in range(4):
    ...     print(*encode("aaabdaaabac", merges[:step]))
    a a a b d a a a b a c
    aa a b d aa a b a c
    aa ab d aa ab a c
    aaab d aaab a c

The two neighbours that stand side by side most often become one symbol, again and again: with Z = aa, Y = ab, X = ZY
the word becomes ZabdZabac, ZYdZYac, XdXac. Of pairs as frequent the one wins whose first symbol is older, then the one
whose second is; the symbols a text begins with are the oldest, in sorted order. In the word above that decides the
second step, where Za and ab stand twice each.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping

Symbol = str | bytes
Pair = tuple[Symbol, Symbol]


def learn(words: Mapping[tuple[Symbol, ...], int], num_merges: int) -> list[Pair]:
    """The pairs that are merged, in order, as long as one stands there twice.

    words: symbols of each word, and how often the text has it; no pair reaches from one word into the next.
    """
    words, merges = dict(words), []
    age = {symbol: i for i, symbol in enumerate(sorted({symbol for word in words for symbol in word}))}
    for _ in range(num_merges):
        counts = Counter()
        for word, times in words.items():
            for pair, number in pairs(word).items():
                counts[pair] += number * times
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], age[pair[0]], age[pair[1]]))
        if counts[best] < 2:
            break
        merges.append(best)
        age.setdefault(best[0] + best[1], len(age))
        merged = Counter()
        for word, times in words.items():
            merged[merge(word, best)] += times
        words = merged
    return merges


def pairs(word: tuple[Symbol, ...]) -> Counter[Pair]:
    """How often each pair of neighbours stands in a word: that of "aaa" twice, though only one can be merged."""
    return Counter(itertools.pairwise(word))


def merge(word: Iterable[Symbol], pair: Pair) -> tuple[Symbol, ...]:
    """The word with each occurrence of the pair as one symbol, from left to right."""
    merged: list[Symbol] = []
    waiting = False  # the last symbol may be the first of the pair
    for symbol in word:
        if waiting and (merged[-1], symbol) == pair:
            merged[-1], waiting = merged[-1] + symbol, False
        else:
            merged.append(symbol)
            waiting = True
    return tuple(merged)


def encode(word: Iterable[Symbol], merges: Iterable[Pair]) -> tuple[Symbol, ...]:
    """The symbols of a word after all merges, in the order in which they were learned."""
    word = tuple(word)
    for pair in merges:
        word = merge(word, pair)
    return word
