"""Dates and numbers as French and English write them: pairs to learn translation from that need no file."""

import datetime
import random

YEARS = 1900, 2100
NUMBERS = 100_000


def pairs(count: int = 4000, seed: int = 0) -> list[tuple[str, str]]:
    """(French, English) of days of 1900 to 2099 and of numbers below 100,000, in turns, none twice.

    ("le mardi 3 mars 1998", "Tuesday, March 3, 1998"), by Babel; ("quatre-vingt-dix-sept", "ninety-seven"), by
    num2words.
    """
    draw = random.Random(seed)
    first, end = (datetime.date(year, 1, 1).toordinal() for year in YEARS)
    if not 0 <= count <= 2 * (end - first):
        raise ValueError(f"count must be from 0 to {2 * (end - first):,}, received {count:,}")
    days = draw.sample(range(first, end), (count + 1) // 2)
    numbers = draw.sample(range(NUMBERS), len(days))
    both = zip(map(date, map(datetime.date.fromordinal, days)), map(number, numbers), strict=True)
    return [pair for two in both for pair in two][:count]


def date(day: datetime.date) -> tuple[str, str]:
    """A day with its day of the week; the first of a month is "1er" in French."""
    from babel.dates import format_date

    french, english = (format_date(day, "full", locale=language) for language in ("fr", "en"))
    return f"le {french}".replace(" 1 ", " 1er "), english


def number(n: int) -> tuple[str, str]:
    from num2words import num2words

    return num2words(n, lang="fr"), num2words(n, lang="en")
