"""Texts that repeat one another: equal up to case, space and punctuation, or nearly so.

Two texts are nearly equal if the sets of their word n-grams have a Jaccard index |A and B| / |A or
B| of at least a threshold. It is computed exactly. An inverted index finds the candidates by prefix
filtering (Chaudhuri, Ganti and Kaushik 2006): with all n-grams in one order, two sets of that
similarity share one among the first |A| - ceil(threshold |A|) + 1 of A and those of B. The order
puts rare n-grams first, so that few texts share a place in the index.
"""

import re
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

_WORD = re.compile(r"[^\W_]+")


def normalise(text: str) -> str:
    """The words of a text in lower case, one space between them; nothing else counts."""
    return " ".join(_WORD.findall(text.casefold()))


def ngrams(normalised: str, n: int) -> frozenset[str]:
    """The distinct runs of n words; of a text with fewer words, the whole of it."""
    words = normalised.split(" ")
    return frozenset(" ".join(words[i : i + n]) for i in range(max(len(words) - n + 1, 1)))


class Match(NamedTuple):
    """An earlier text that a text repeats."""

    id: str
    number: int  # how many texts were added before it
    similarity: float  # 1.0 also of texts that have the same n-grams and are not equal
    equal: bool


class Collection:
    """Texts to hold new ones against."""

    def __init__(self, n: int, threshold: float, expected: Iterable[str] = ()):
        """`n` words make an n-gram; texts like those `expected` are looked up fast."""
        self._n = n
        # Of floats, 0.3 * 10 is more than 3.
        self._threshold = Fraction(threshold).limit_denominator(1_000_000)
        self._counts = Counter(gram for text in expected for gram in ngrams(normalise(text), n))
        self._equal: dict[str, int] = {}  # normalised text -> its number
        self._texts: list[tuple[str, frozenset[str]]] = []  # id and n-grams, by number
        self._index: dict[str, list[int]] = {}  # n-gram -> numbers of the texts filed under it

    def add(self, id: str, text: str) -> None:
        """Takes in a text, whether or not it repeats another."""
        normalised = normalise(text)
        grams = ngrams(normalised, self._n)
        number = len(self._texts)
        self._texts.append((id, grams))
        self._equal.setdefault(normalised, number)
        for gram in self._prefix(grams):
            self._index.setdefault(gram, []).append(number)

    def find(self, text: str) -> Match | None:
        """The text that `text` equals, else the most similar one, the first of equals; or none."""
        normalised = normalise(text)
        if normalised in self._equal:
            number = self._equal[normalised]
            return Match(self._texts[number][0], number, 1.0, True)
        grams = ngrams(normalised, self._n)
        best, best_number = Fraction(0), -1
        candidates = {i for gram in self._prefix(grams) for i in self._index.get(gram, ())}
        for number in candidates:
            others = self._texts[number][1]
            shared = len(grams & others)
            similarity = Fraction(shared, len(grams) + len(others) - shared)
            if (similarity, -number) > (best, -best_number):
                best, best_number = similarity, number
        if best_number < 0 or best < self._threshold:
            return None
        return Match(self._texts[best_number][0], best_number, float(best), False)

    def _prefix(self, grams: frozenset[str]) -> list[str]:
        ordered = sorted(grams, key=lambda gram: (self._counts[gram], gram))
        least = -(-len(grams) * self._threshold // 1)  # n-grams shared at least: rounded up
        return ordered[: len(grams) - int(least) + 1]
