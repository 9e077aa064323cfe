"""A word is found as people write it, whatever marks its tokenizer put on the pieces."""

import pytest

from multihead.recording.words import cleaned, occurrences, shown, suggestions, words_of

WORDPIECE = ["[CLS]", "govern", "##ments", "make", "life", "making", "[SEP]"]
BYTE_LEVEL = ["Hello", "Ġgovern", "ments", ",", "Ġdon", "'t", "Ġwell", "-", "known", "Ċ", "Ġgovernments"]
SENTENCEPIECE = ["<s>", "▁go", "vern", "ments", ".", "▁", "making", "</s>"]
AT_SIGNS = ["go@@", "vern@@", "ments", "act"]
ENDINGS = ["<|startoftext|>", "gov", "ern", "ments</w>", "act</w>"]


@pytest.mark.parametrize(
    ("tokens", "places"),
    [
        (WORDPIECE, [(1, 2)]),
        (BYTE_LEVEL, [(1, 2), (10,)]),
        (SENTENCEPIECE, [(1, 2, 3)]),
        (AT_SIGNS, [(0, 1, 2)]),
        (ENDINGS, [(1, 2, 3)]),
    ],
)
def test_a_word_in_pieces(tokens, places):
    assert occurrences(tokens, "governments") == places


@pytest.mark.parametrize(
    ("tokens", "word", "places"),
    [
        (BYTE_LEVEL, "don't", [(4, 5)]),
        (BYTE_LEVEL, "known", [(8,)]),
        (BYTE_LEVEL, ",", [(3,)]),
        (SENTENCEPIECE, "making", [(5, 6)]),
        (SENTENCEPIECE, "<s>", [(0,)]),
        (WORDPIECE, "[CLS]", [(0,)]),
        (WORDPIECE, "##ments", [(2,)]),
        (WORDPIECE, "ments", [(2,)]),
        (WORDPIECE, "govern", [(1,)]),
        (WORDPIECE, "Making", [(5,)]),
        (["Making", "making"], "making", [(1,)]),
        (["Making", "making"], "MAKING", [(0,), (1,)]),
        (["a", "b", "ab"], "ab", [(2,)]),
        (["to", "day"], "today", []),
        (WORDPIECE, "life making", []),
        ([], "x", []),
        (["", "##", "@@"], "##", [(1,)]),
    ],
)
def test_where_a_word_stands(tokens, word, places):
    assert occurrences(tokens, word) == places


def test_words_cover_every_token_once():
    for tokens in (WORDPIECE, BYTE_LEVEL, SENTENCEPIECE, AT_SIGNS, ENDINGS, ["##a", "##b"], [""]):
        assert [position for word in words_of(tokens) for position in word] == list(range(len(tokens)))


@pytest.mark.parametrize(
    ("token", "bare"),
    [("Ġ", "Ġ"), ("##", "##"), ("▁▁x", "x"), ("a</w>", "a"), ("a@@", "a"), ("[SEP]", "[SEP]"), ("", "")],
)
def test_cleaned(token, bare):
    assert cleaned(token) == bare


def test_suggestions_show_the_pieces():
    assert suggestions(WORDPIECE, "goverments")[0] == "governments (govern + ##ments)"
    assert suggestions(WORDPIECE, "qqqqqqqqq") == []


def test_what_is_shown_is_printable():
    assert shown("\x1b]0;evil\x07 é \u202e\ud800\n") == "\\x1b]0;evil\\x07 é \\u202e\\ud800\\n"
