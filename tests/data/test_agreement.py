"""Sentences whose subject's number is to be kept: what is held out, what is balanced, where the verb stands."""

import itertools

import numpy as np
import pytest

from lmlab.data import agreement


def test_plurals():
    forms = {
        "leaf": "leaves",
        "city": "cities",
        "boy": "boys",
        "church": "churches",
        "witness": "witnesses",
        "man": "men",
        "tree": "trees",
    }
    assert {noun: agreement.plural(noun) for noun in forms} == forms
    both = [*agreement.SINGULAR, *map(agreement.plural, agreement.SINGULAR)]
    assert len(set(both)) == 2 * len(agreement.SINGULAR), "no form is two"


def test_nouns_of_the_two_parts_are_apart_in_either_form_and_as_the_other_noun_too():
    first, second = agreement.parted(lambda word: True)
    assert not set(first) & set(second) and len(first) > 2 * len(second) > 20
    assert sorted([*first, *second]) == sorted(agreement.SINGULAR)
    seen = []
    for nouns, others in ((first, second), (second, first)):
        words = set(" ".join(agreement.sentences(nouns, 2, 0).texts).split())
        fillers = set(" ".join(agreement.CLAUSES).split())
        assert not words & ({*others, *map(agreement.plural, others)} - fillers)
        seen.append(words)
    assert len(seen[0] & {*first, *map(agreement.plural, first)}) == 2 * len(first)


def test_nouns_that_are_not_known_in_both_forms_are_left_out():
    first, second = agreement.parted(lambda word: word not in ("leaf", "trees"))
    assert (
        not {"leaf", "tree"} & {*first, *second} and len(first) + len(second) == len(agreement.SINGULAR) - 2
    )


def test_every_sentence_is_what_it_says():
    nouns = ["leaf", "city", "man"]
    made = agreement.sentences(nouns, 3, 1)
    assert len(made.texts) == 3 * 2 * 2 * 3
    forms = [
        {noun: number for noun in map(form, nouns)} for number, form in ((0, str), (1, agreement.plural))
    ]
    number = forms[0] | forms[1]
    for text, plural, other, noun in zip(made.texts, made.plural, made.other_plural, made.noun, strict=True):
        the, subject, *rest = text.split()
        assert the == "The" and subject == (agreement.plural(nouns[noun]) if plural else nouns[noun])
        others = [number[word] for word in rest if word in number]
        assert others == [int(other)], "one other noun, of the number that it has"
        assert rest[agreement.VERB - 1] in agreement.VERBS and len(rest) == agreement.VERB
        assert rest[0] == rest[agreement.VERB - 2] == ","


def test_numbers_say_nothing_of_each_other():
    made = agreement.sentences(["leaf", "city", "man", "tree"], 5, 0)
    for noun, first, second in itertools.product(range(4), (False, True), (False, True)):
        same = (made.noun == noun) & (made.plural == first) & (made.other_plural == second)
        assert same.sum() == 5


def test_sentences_are_those_of_their_seed():
    first, again, other = (agreement.sentences(["leaf", "city"], 2, seed).texts for seed in (0, 0, 1))
    assert first == again != other


def test_the_verb_of_the_grammar_agrees_with_the_subject():
    number = {noun: "was" for noun in agreement.SINGULAR}
    number |= {agreement.plural(noun): "were" for noun in agreement.SINGULAR}
    lines = agreement.grammar(1, 0).splitlines()
    verbs = [(line.split()[1], line.split()[-3]) for line in lines]
    assert all(verb in (number[subject], *agreement.VERBS) for subject, verb in verbs)
    counts = np.unique([verb for _, verb in verbs], return_counts=True)
    counted = dict(zip(*counts, strict=True))
    assert counted["was"] == counted["were"] == len(lines) / 3


def test_mistakes_are_one_line():
    with pytest.raises(ValueError, match="at least 2 nouns are needed, received 1"):
        agreement.sentences(["leaf"], 1, 0)
    with pytest.raises(ValueError, match="each must be at least 1, received 0"):
        agreement.sentences(["leaf", "tree"], 0, 0)
