"""Finding a word among tokens: with or without the marks that tokenizers put on pieces, whole or in pieces.

Marks known: ``##ing`` (WordPiece: goes on); ``Ġof``, ``▁of`` and `` of`` (byte-level BPE, SentencePiece: starts a
word); ``work@@`` (goes on); ``of</w>`` (ends a word).
"""

import re
from collections.abc import Callable, Iterator, Sequence

from multihead.conventions import nearest

Tokens = Sequence[str] | Sequence[Sequence[str]]
"""The tokens of one sequence, or one list of them for each sequence of the batch."""

_STARTS = ("Ġ", "▁", " ", "Ċ")
_SPECIAL = re.compile(r"\[[A-Za-z_0-9]+\]|<[^<>\s]+>")


def token_lists(argument: str, tokens: Tokens | None) -> list[list[str]] | None:
    """One list of tokens for each sequence; None where there are none.

    Raises:
        TypeError: they are no lists of strings; the message says what to give as ``argument``.
    """
    if tokens is None:
        return None
    if isinstance(tokens, str):
        raise TypeError(f"{argument} is one string: give a list of tokens, as tokenizer.convert_ids_to_tokens returns.")
    lists: list[list[object]] = [list(tokens)]
    if not all(isinstance(token, str) for token in tokens):
        lists = [list(row) if isinstance(row, Sequence) else [row] for row in tokens]
    wrong = [token for row in lists for token in row if not isinstance(token, str)]
    if wrong:
        raise TypeError(
            f"{argument} holds {wrong[0]!r}, a {type(wrong[0]).__name__}: give a list of strings, or one such list for "
            "each sequence."
        )
    return [[str(token) for token in row] for row in lists]


def cleaned(token: str) -> str:
    """A token without its tokenizer's marks; one that is nothing but marks stays as it is.

    >>> cleaned("##ments"), cleaned("Ġgovern"), cleaned("▁of"), cleaned("[SEP]")
    ('ments', 'govern', 'of', '[SEP]')
    """
    bare = token.removesuffix("@@").removesuffix("</w>")
    bare = bare.removeprefix("##").lstrip("".join(_STARTS))
    return bare or token


def is_mark(token: str) -> bool:
    """Whether a token is none of the text's words: a special token or punctuation.

    >>> is_mark("[SEP]"), is_mark("."), is_mark("##s")
    (True, True, False)
    """
    bare = cleaned(token)
    return bool(_SPECIAL.fullmatch(bare)) or not any(character.isalnum() for character in bare)


def shown(token: str) -> str:
    r"""A token as it may safely be printed: control characters and lone surrogates as escapes.

    >>> print(shown("a\x1b[31mb"))
    a\x1b[31mb
    """
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in token)


def words_of(tokens: Sequence[str]) -> list[tuple[int, ...]]:
    """The positions of each word's pieces, in order.

    >>> words_of(["[CLS]", "govern", "##ments", "act", "[SEP]"])
    [(0,), (1, 2), (3,), (4,)]
    """
    goes_on = _continuation(tokens)
    words: list[list[int]] = []
    for position in range(len(tokens)):
        if position and goes_on(position):
            words[-1].append(position)
        else:
            words.append([position])
    return [tuple(word) for word in words]


def _continuation(tokens: Sequence[str]) -> Callable[[int], bool]:
    """Whether the token at a position goes on with the word before it."""
    starts_marked = any(token.startswith(_STARTS) for token in tokens)
    ends_marked = any(token.endswith("</w>") for token in tokens)

    def goes_on(position: int) -> bool:
        before, token = tokens[position - 1], tokens[position]
        if any(_SPECIAL.fullmatch(piece) for piece in (before, token)):
            return False
        if token.startswith("##") and len(token) > 2:
            return True
        if before.endswith("@@") and len(before) > 2:
            return True
        if ends_marked:
            return not before.endswith("</w>")
        return (
            starts_marked
            and not token.startswith(_STARTS)
            and _is_word(token)
            and (_is_word(before) or before in _STARTS)
        )

    return goes_on


def _is_word(token: str) -> bool:
    return any(char.isalnum() for char in token.lstrip("".join(_STARTS)))


def joined(tokens: Sequence[str], word: Sequence[int]) -> str:
    """The pieces of a word as one."""
    return "".join(cleaned(tokens[position]) for position in word if len(word) == 1 or tokens[position] not in _STARTS)


def occurrences(tokens: Sequence[str], wanted: str) -> list[tuple[int, ...]]:
    """Where ``wanted`` stands, in order: as a token, as a token without its marks, or as a word in pieces.

    Upper and lower case are one only where nothing is found otherwise.

    >>> occurrences(["making", "govern", "##ments", "Making"], "governments")
    [(1, 2)]
    >>> occurrences(["Making", "the", "MAKING"], "making")
    [(0,), (2,)]
    """
    words = [word for word in words_of(tokens) if len(word) > 1]
    for same in (str, str.casefold):
        target = same(wanted)
        whole = [word for word in words if same(joined(tokens, word)) == target]
        inside = {position for word in whole for position in word}
        single = [
            (position,)
            for position, token in enumerate(tokens)
            if position not in inside and target in (same(token), same(cleaned(token)))
        ]
        if whole or single:
            return sorted(whole + single)
    return []


def suggestions(tokens: Sequence[str], wanted: str) -> list[str]:
    """Words that look like ``wanted``; of a word in pieces, the pieces too.

    >>> suggestions(["govern", "##ments", "act"], "goverments")
    ['governments (govern + ##ments)', 'govern', 'ments']
    """
    by_word = dict(_named(tokens))
    return [by_word[word] for word in nearest(wanted, by_word)]


def _named(tokens: Sequence[str]) -> Iterator[tuple[str, str]]:
    for position in range(len(tokens)):
        yield cleaned(tokens[position]), shown(cleaned(tokens[position]))
    for word in words_of(tokens):
        if len(word) > 1:
            pieces = " + ".join(shown(tokens[position]) for position in word)
            yield joined(tokens, word), f"{shown(joined(tokens, word))} ({pieces})"
