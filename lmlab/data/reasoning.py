"""Questions of mathematics and their answers as text: seven families, generated, and the files of Saxton et al. (2019).

Of a family there are three splits. A fifth of the questions of training's ranges is held out, which is what
`interpolate` has; whether one is depends on a hash of it that sees no letters' names, so that no question of
`interpolate` is in `train`, nor is it there in other letters. `extrapolate` has ranges that training never has.
There are small questions too, of smaller numbers and fewer functions, from which `extrapolate` goes as far as usual
ones do. But for their letters they are few: of `derivative` there are some 1,300, which come again in other letters.
"""

import random
import string
import zlib
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from lmlab.data import locate, text

SPLITS = ("train", "interpolate", "extrapolate")
ALPHABET = "".join(map(chr, range(32, 127)))
"""Printable ASCII: what questions and answers are made of, here and in the files."""
QUESTION, ANSWER = 160, 30
"""The most characters of a question and of an answer, here and in the files."""
NAMES = "αβγδεζηθικλ"
"""Of functions and variables while a question is made: then each becomes a Latin letter."""

Pairs = Sequence[tuple[str, str]]


TRIES = 50_000
"""Questions drawn in a row that are in the other split or were there before: then there are no more."""


class Ranges(NamedTuple):
    """Of which numbers questions are made."""

    small: bool = False
    beyond: bool = False

    @property
    def level(self) -> int:
        """0 small, 1 usual or beyond small, 2 beyond usual."""
        return (not self.small) + self.beyond

    def span(self, least: int, *most: int) -> tuple[int, int]:
        """(least, greatest): from least, or past what training has, to `most` of the level."""
        return (most[self.level - 1] + 1 if self.beyond else least), most[self.level]

    def most(self, small: int, usual: int) -> int:
        """A size that is the same beyond."""
        return small if self.small else usual


def generate(
    family: str, count: int, seed: int = 0, split: str = "train", small: bool = False
) -> list[tuple[str, str]]:
    """So many (question, answer) of one of FAMILIES, no question twice; of more, they are the first."""
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}; received {family!r}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; received {split!r}")
    if count < 1:
        raise ValueError(f"count must be at least 1, received {count}")
    rng, pairs, tries = random.Random(f"{family} {split} {seed}{' small' * small}"), {}, 0
    ranges = Ranges(small, split == "extrapolate")
    while len(pairs) < count:
        question, answer = FAMILIES[family](rng, ranges)
        held_out = zlib.crc32(question.encode()) % 5 == 0
        before = len(pairs)
        if split == "extrapolate" or held_out == (split == "interpolate"):
            letters = str.maketrans(NAMES, "".join(rng.sample(string.ascii_lowercase, len(NAMES))))
            pairs[question.translate(letters)] = answer.translate(letters)
        tries = 0 if len(pairs) > before else tries + 1
        if tries == TRIES:
            raise ValueError(
                f"{family} has some {before:,} questions for {split}; received count {count:,}, which is more"
            )
    return list(pairs.items())


def majority(pairs: Pairs) -> tuple[str, float]:
    """The commonest answer, and its share: what one scores who never reads the question."""
    if not pairs:
        raise ValueError("at least 1 pair of question and answer is needed, received none")
    [(answer, count)] = Counter(answer for _, answer in pairs).most_common(1)
    return answer, count / len(pairs)


# -- files -------------------------------------------------------------------------------------------


def modules(path: locate.PathLike, split: str) -> dict[str, Path]:
    """{module: file} of the folder `split` in `path`, as mathematics_dataset names them: <module>.txt, or .txt.gz."""
    return {file.name.split(".")[0]: file for file in locate.text_files(Path(path) / split)}


def read(path: locate.PathLike) -> list[tuple[str, str]]:
    """The (question, answer) of a file, or of what else `locate.text_files` takes: a line each, in turn."""
    pairs = []
    for file in locate.text_files(path):
        lines = text.read(file).splitlines()
        for number, line in enumerate(lines, 1):
            if not line:
                raise ValueError(
                    f"line {number:,} of {str(file)!r} is empty; questions and answers take turns"
                )
            if odd := next((character for character in line if not " " <= character <= "~"), None):
                raise ValueError(
                    f"line {number:,} of {str(file)!r} has {odd!r}, which is not printable ASCII"
                )
        if len(lines) % 2:
            raise ValueError(f"{str(file)!r} has {len(lines):,} lines: the last question has no answer")
        pairs += zip(lines[::2], lines[1::2], strict=True)
    return pairs


# -- families: each draws a question and its answer, with the names of NAMES -------------------------


def composition(rng: random.Random, ranges: Ranges) -> tuple[str, str]:
    """What is h(g(f(x))), where f(x) = 2*x + 3, g(x) = 7*x - 4, h(x) = -5*x - 8? 2 or 3 functions, then 4.

    Small: 2 of numbers up to 3, then 3.
    """
    lines = [_line(rng, ranges) for _ in range(_between(rng, *ranges.span(2, 2, 3, 4)))]
    where = [f"{f}(κ) = {_sum((a, 'κ'), (b, ''))}" for f, (a, b) in zip(NAMES, lines, strict=False)]
    rng.shuffle(where)
    a, b = _composed(lines)
    return f"What is {_call(NAMES[: len(lines)], 'κ')}, where {', '.join(where)}?", _sum((a, "κ"), (b, ""))


def linear_system(rng: random.Random, ranges: Ranges) -> tuple[str, str]:
    """Solve -4*r + 17*c = -11 and 13*r + 4*c = 42 for r. Solutions up to 20 in size, then 21 to 60.

    Small: up to 5, then 6 to 20.
    """
    sizes, most = ranges.span(1, 5, 20, 60), ranges.most(5, 20)
    x, y = _signed(rng, *sizes), _signed(rng, *sizes)
    a, b, c, d = (_signed(rng, 1, most) for _ in range(4))
    while a * d == b * c:
        d = _signed(rng, 1, most)
    equations = [f"{_sum((a, 'α'), (b, 'β'))} = {a * x + b * y}" for a, b in ((a, b), (c, d))]
    name, answer = rng.choice((("α", x), ("β", y)))
    return f"Solve {' and '.join(equations)} for {name}.", str(answer)


def arithmetic(rng: random.Random, ranges: Ranges) -> tuple[str, str]:
    """Calculate -8418.544 + 411127. Up to 6 digits before the point, then 7 to 9; up to 3 behind it.

    Small: whole numbers of up to 2 digits, then 3 to 6.
    """
    digits, places = ranges.span(1, 2, 6, 9), ranges.most(0, 3)
    a, b, sign = _thousandths(rng, *digits, places), _thousandths(rng, *digits, places), rng.choice("+-")
    question = f"Calculate {_decimal(a)} {sign} {_decimal(b)}."
    return question, _decimal(a + b if sign == "+" else a - b)


def evaluation(rng: random.Random, ranges: Ranges) -> tuple[str, str]:
    """Let x(g) = 9*g + 1. Let q(c) = 2*c + 1. Let f(i) = 3*i - 3. Let w(j) = q(x(j)). Calculate f(w(a)).

    At a letter, or at a number up to 20 in size. 2 or 3 functions that are composed, then 4.
    Small: at up to 5, 2 functions of numbers up to 3, then 3.
    """
    lines = [_line(rng, ranges) for _ in range(_between(rng, *ranges.span(2, 2, 3, 4)))]
    lets = [
        f"Let {f}({x}) = {_sum((a, x), (b, ''))}."
        for f, x, (a, b) in zip("αβγδ", "εζηθ", lines, strict=False)
    ]
    rng.shuffle(lets)
    most = ranges.most(5, 20)
    (a, b), at = _composed(lines), rng.randint(-most, most)
    at, answer = rng.choice((("λ", _sum((a, "λ"), (b, ""))), (str(at), str(a * at + b))))
    calculate = _call("ι" + "αβγδ"[2 : len(lines)], at)
    return f"{' '.join(lets)} Let ι(κ) = β(α(κ)). Calculate {calculate}.", answer


def factors(rng: random.Random, ranges: Ranges) -> tuple[str, str]:
    """Let e(l) = l - 6. Is 2 a factor of both e(9) and 2? Factors up to 12, then 13 to 30; half are true.

    Small: factors up to 5, then 6 to 12.
    """
    divisor = rng.randint(*ranges.span(2, 5, 12, 30))
    divides = rng.choice(
        ((True, True), (True, True), (True, True), (True, False), (False, True), (False, False))
    )
    most = ranges.most(9, 20)
    first, second = (
        divisor * rng.randint(1, most) + (0 if each else rng.randrange(1, divisor)) for each in divides
    )
    a, at = _signed(rng, 1, ranges.most(3, 9)), rng.randint(2, most)
    function = _sum((a, "β"), (first - a * at, ""))
    question = f"Let α(β) = {function}. Is {divisor} a factor of both α({at}) and {second}?"
    return question, str(all(divides))


def derivative(rng: random.Random, ranges: Ranges) -> tuple[str, str]:
    """Let u(n) = -n**3 - n**2. Let e(c) = -2*c**3 + c. Let l(j) = -8*e(j) + 4*u(j). What is the derivative of l(a)?

    A sum of 2 functions, then of 3. Small: one of numbers up to 3, then 2.
    """
    total, lets, parts, most = [0] * 4, [], [], ranges.most(3, 9)
    for f, x in zip("αβγ"[: ranges.level + 1], "δεζ", strict=False):
        factor, powers = _signed(rng, 1, most), sorted(rng.sample(range(4), 2), reverse=True)
        terms = [(_signed(rng, 1, most), power) for power in powers]
        for a, power in terms:
            total[power] += factor * a
        lets.append(f"Let {f}({x}) = {_sum(*((a, _power(x, power)) for a, power in terms))}.")
        parts.append((factor, f"{f}(θ)"))
    rng.shuffle(lets)
    question = f"{' '.join(lets)} Let η(θ) = {_sum(*parts)}. What is the derivative of η(ι)?"
    return question, _sum(*((power * total[power], _power("ι", power - 1)) for power in (3, 2, 1)))


def probability(rng: random.Random, ranges: Ranges) -> tuple[str, str]:
    """Three letters picked without replacement from qqkkklkqkxpl. Give prob of sequence qql. 2 or 3 are, then 4.

    Of 8 to 14, small: of 4 to 7, 2, then 3.
    """
    kinds, length = ((2, 3), (4, 7)) if ranges.small else ((3, 5), (8, 14))
    drawn = rng.choices(range(rng.randint(*kinds)), k=rng.randint(*length))
    order = list(dict.fromkeys(drawn))
    letters = "".join(NAMES[order.index(kind)] for kind in drawn)
    picked = rng.sample(letters, _between(rng, *ranges.span(2, 2, 3, 4)))
    left, chance = Counter(letters), Fraction(1)
    for i, letter in enumerate(picked):
        chance *= Fraction(left[letter], len(letters) - i)
        left[letter] -= 1
    many = {2: "Two", 3: "Three", 4: "Four"}[len(picked)]
    question = (
        f"{many} letters picked without replacement from {letters}. Give prob of sequence {''.join(picked)}."
    )
    return question, str(chance)


FAMILIES = {
    family.__name__: family
    for family in (composition, linear_system, arithmetic, evaluation, factors, derivative, probability)
}


def _between(rng, least, most):
    """Nothing is drawn where there is nothing to choose."""
    return rng.randint(least, most) if least < most else least


def _signed(rng, least, most):
    return rng.choice((-1, 1)) * rng.randint(least, most)


def _line(rng, ranges):
    most = ranges.most(3, 9)
    return _signed(rng, 1, most), rng.randint(-most, most)


def _composed(lines):
    """(a, b) of a x + b = f_n(... f_1(x)), each function being such a pair."""
    slope, shift = 1, 0
    for a, b in lines:
        slope, shift = a * slope, a * shift + b
    return slope, shift


def _call(functions, argument):
    """ "β(α(x))" of the functions αβ."""
    return "(".join([*reversed(functions), argument]) + ")" * len(functions)


def _power(name, power):
    return f"{name}**{power}" if power > 1 else name * power


def _sum(*terms):
    """-3*x + y - 2 of (-3, "x"), (1, "y"), (-2, "")."""
    written = ""
    for coefficient, factor in terms:
        if coefficient:
            size = abs(coefficient)
            term = f"{size}*{factor}" if factor and size > 1 else factor or str(size)
            sign = "-" if coefficient < 0 else "+"
            written += f" {sign} {term}" if written else f"{sign.strip('+')}{term}"
    return written or "0"


def _thousandths(rng, least, most, places):
    """A number of so many digits before the point and up to `places` behind it, times 1000."""
    digits, places = rng.randint(least, most), _between(rng, 0, places)
    size = rng.randrange(10 ** (digits - 1 + places), 10 ** (digits + places))
    return rng.choice((-1, 1)) * size * 10 ** (3 - places)


def _decimal(thousandths):
    whole, rest = divmod(abs(thousandths), 1000)
    return "-" * (thousandths < 0) + f"{whole}.{rest:03}".rstrip("0").rstrip(".")
