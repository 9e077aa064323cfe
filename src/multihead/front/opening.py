"""What to show first of a recording, by its text alone."""

from multihead.errors import SourceError
from multihead.front.document import texts_of
from multihead.recording.outline import RecordingOutline
from multihead.recording.words import is_mark, joined, words_of

EAGER_ROWS = 1 << 20
"""Queries and keys of all heads, up to which they are read at the start to find what tells most: some 256 MB."""

_LOOKED = 2_000


def likely_token(recording: RecordingOutline, item: int = 0) -> int:
    """The position of a token worth looking at in the text that is asked about: the longest word, the first of several.

    Of a text of more than 2,000 tokens the first as many that were recorded are looked through.

    Raises:
        SourceError: the recording holds no layer.
    """
    name = asking_text(recording)
    layer = next(layer for layer in reversed(recording.layers) if layer.query_text == name)
    tokens = recording.texts[name][item] if name in recording.texts else []
    kept = range(layer.sizes.queries) if layer.queries is None else frozenset(layer.queries)
    before = layer.place_of_query(0, len(tokens) or layer.sizes.queries)
    first = before + min(kept) if kept else 0
    begin = first if len(tokens) > _LOOKED else 0
    looked = tokens[begin : begin + _LOOKED]
    words = [word for word in words_of(looked) if begin + word[0] - before in kept and not is_mark(looked[word[0]])]
    longest = max(words, key=lambda word: len(joined(looked, word)), default=None)
    return first if longest is None else begin + longest[0]


def asking_text(recording: RecordingOutline) -> str:
    """The text whose tokens ask: that of the first layer's queries, of the last layer's in an encoder-decoder model.

    Raises:
        SourceError: the recording holds no layer.
    """
    if not recording.layers:
        raise SourceError("the recording holds no layer, so there is nothing to show.")
    return recording.layers[-1].query_text


def start_by_text(recording: RecordingOutline, item: int = 0, token: int | None = None) -> dict[str, object]:
    """What the page of a large recording opens with: a token of the text that is asked about; None: a likely one.

    Raises:
        SourceError: the recording holds no layer.
    """
    place = list(texts_of(recording, item)).index(asking_text(recording))
    return {"text": place, "token": likely_token(recording, item) if token is None else token}


def opens_by_text(recording: RecordingOutline) -> bool:
    """Whether a recording is so large that no more than its text is read for what its page opens with."""
    return sum(len(layer.heads) * (layer.query_count + layer.sizes.keys) for layer in recording.layers) > EAGER_ROWS
