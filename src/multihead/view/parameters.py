"""What a served page asks for, checked."""

from collections.abc import Mapping, Sequence
from typing import Any

from multihead.conventions import in_words
from multihead.web import Refusal


class Parameters:
    """The parameters of a request, as numbers and words that mean something."""

    def __init__(self, parameters: Mapping[str, str]) -> None:
        self._parameters = parameters

    def _text(self, name: str) -> str:
        if name not in self._parameters:
            raise Refusal(400, f"The parameter {name} is missing.")
        return self._parameters[name]

    def number(self, name: str) -> int:
        """A whole number that is not negative."""
        return _number(name, self._text(name))

    def numbers(self, name: str) -> list[int]:
        """Several of them, none twice: ``0,3``."""
        found = [_number(name, word) for word in self._text(name).split(",")]
        if len(set(found)) < len(found):
            raise Refusal(400, f"The parameter {name} names one twice.")
        return found

    def one_of(self, name: str, words: Sequence[str]) -> Any:
        """One of some words."""
        word = self._text(name)
        if word not in words:
            raise Refusal(400, f"The parameter {name} is {word[:20]!a}, expected {in_words(words, 'or')}.")
        return word


def _number(name: str, word: str) -> int:
    if not (word.isascii() and word.isdecimal() and len(word) < 10):
        raise Refusal(400, f"The parameter {name} has {word[:20]!a}, expected a whole number.")
    return int(word)
