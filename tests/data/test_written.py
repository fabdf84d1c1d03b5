"""Dates and numbers written out: each says what it stands for, in both languages."""

import datetime
import re
import subprocess
import sys

import pytest

from lmlab.data import written

MONTHS = [
    "janvier",
    "février",
    "mars",
    "avril",
    "mai",
    "juin",
    "juillet",
    "août",
    "septembre",
    "octobre",
    "novembre",
    "décembre",
]
DAYS = ["lundi", "mardi", "mercredi", "jeudi", "vendredi", "samedi", "dimanche"]


def test_as_people_write_them():
    assert written.date(datetime.date(1998, 3, 3)) == ("le mardi 3 mars 1998", "Tuesday, March 3, 1998")
    assert written.date(datetime.date(2001, 8, 1)) == (
        "le mercredi 1er août 2001",
        "Wednesday, August 1, 2001",
    )
    assert written.number(97) == ("quatre-vingt-dix-sept", "ninety-seven")
    assert written.number(21_071) == (
        "vingt et un mille soixante et onze",
        "twenty-one thousand and seventy-one",
    )


def test_both_languages_name_one_day():
    for french, english in written.pairs(400)[::2]:
        day = datetime.datetime.strptime(english, "%A, %B %d, %Y").date()  # the C locale's names
        weekday, number, month, year = re.fullmatch(r"le (\w+) (1er|\d+) (\w+) (\d{4})", french).groups()
        assert (DAYS.index(weekday), MONTHS.index(month) + 1) == (day.weekday(), day.month)
        assert (int(number.removesuffix("er")), int(year)) == (day.day, day.year)


def test_so_many_each_once_and_the_same_again():
    made = written.pairs()
    assert len(made) == len(set(made)) == 4000 and made == written.pairs()
    assert len(written.pairs(7)) == 7 and written.pairs(7) != written.pairs(7, seed=1)
    assert all(len(source.split()) <= 12 and len(target.split()) <= 12 for source, target in made)
    with pytest.raises(ValueError, match="count must be from 0 to 146,098, received 200,000"):
        written.pairs(200_000)


def test_their_libraries_are_loaded_where_they_are_used():
    code = "import sys, lmlab.data.pairs, lmlab.evaluation.bleu; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"babel", "num2words", "sacrebleu"} & set(loaded.split())
