"""What a recording says of itself without a tensor: its layers' numbers and names, its texts, and where it comes from.

A page's frame is made of it, before torch is there.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from multihead.conventions import checked_indices, in_words
from multihead.counting import whole
from multihead.errors import RecordingError
from multihead.sizes import Sizes

PROMPT_TOKENS = "prompt tokens"
"""In the provenance of a generation: how many tokens of its text were there before the model wrote."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerOutline:
    """One attention of one run of a model, without its tensors.

    ``heads`` and ``queries`` name what was kept, by the model's own numbers.

    Raises:
        ValueError: numbers that do not belong together; the message names the layer.
    """

    index: int
    """The number of this attention in order of first appearance, counting from 0."""
    name: str
    """Path of the module that computed it, as in ``named_modules()``."""
    host: str
    """Who computed it: ``multihead``, ``sdpa``, ``nn.MultiheadAttention`` or ``transformers``; or ``given``."""
    sizes: Sizes
    """Of the attention as the model computed it: batch, all heads, all queries, all keys."""
    heads: tuple[int, ...]
    queries: tuple[int, ...] | None = None
    """Measured query indices; None for all of them."""
    kv_heads: tuple[int, ...] = ()
    """For each of ``heads``, the place of its key head on the head axis of ``k``."""
    scale: float = 1.0
    softcap: float | None = None
    query_text: str = "text"
    key_text: str = "text"

    def __post_init__(self) -> None:
        try:
            self._check()
        except ValueError as error:
            raise ValueError(f"layer {self.index}: {error}") from error

    def _check(self) -> None:
        checked_indices("heads", self.heads, self.sizes.heads)
        if self.queries is not None:
            checked_indices("queries", self.queries, self.sizes.queries)
        if not math.isfinite(self.scale):
            raise ValueError(f"scale={self.scale} is no finite number.")
        if self.softcap is not None and not (math.isfinite(self.softcap) and self.softcap > 0):
            raise ValueError(f"softcap={self.softcap} is no positive number: None for no cap.")

    @property
    def query_count(self) -> int:
        """How many queries were measured."""
        return self.sizes.queries if self.queries is None else len(self.queries)

    def place_of_query(self, query: int, tokens: int) -> int:
        """Place of a query's token in its text of ``tokens`` tokens.

        In self-attention over a cache the queries are the last of the keys, so query 0 is not token 0.
        """
        cached = self.query_text == self.key_text and tokens != self.sizes.queries
        return query + max(self.sizes.offset, 0) if cached else query

    def query_of_place(self, place: int, tokens: int) -> int | None:
        """The query that stands at a place in its text, None where there is none."""
        query = place - self.place_of_query(0, tokens)
        return query if 0 <= query < self.sizes.queries else None


@dataclass(frozen=True, eq=False)
class RecordingOutline:
    """The layers, texts and provenance of a recording, without its tensors.

    Raises:
        ValueError: two layers have one index, or a text does not fit the layers over it.
    """

    layers: tuple[LayerOutline, ...]
    texts: Mapping[str, Sequence[Sequence[str]]]
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        indices = [layer.index for layer in self.layers]
        if len(set(indices)) != len(indices):
            raise ValueError(f"layer indices {indices} name one twice: each attention of a run has its own.")
        for name, sequences in self.texts.items():
            _check_text(name, sequences, self.layers)

    @property
    def batch(self) -> int:
        """How many sequences were seen at once."""
        sizes = {layer.sizes.batch for layer in self.layers} or {len(sequences) for sequences in self.texts.values()}
        return max(sizes, default=0)


def _check_text(name: str, sequences: Sequence[Sequence[str]], layers: Sequence[LayerOutline]) -> None:
    """Whether a text fits the layers that look from or at it: as long as the longest of them."""
    lengths = [layer.sizes.queries for layer in layers if layer.query_text == name]
    lengths += [layer.sizes.keys for layer in layers if layer.key_text == name]
    batches = {layer.sizes.batch for layer in layers if name in (layer.query_text, layer.key_text)}
    if not lengths:
        return
    if batches != {len(sequences)}:
        raise ValueError(
            f"text {name!r} has {counted(len(sequences), 'sequence')}, "
            f"but its layers have a batch of {numbers(sorted(batches))}."
        )
    wrong = sorted({len(tokens) for tokens in sequences} - {max(lengths)})
    if wrong:
        raise ValueError(
            f"text {name!r} has {numbers(wrong)} tokens, but the longest attention over it has {max(lengths)}: "
            "one token for each, please."
        )


def check_item(item: int, batch: int) -> None:
    """Raise ``RecordingError`` unless there is such a sequence in the batch, ``TypeError`` unless it is a number."""
    if not 0 <= whole("item", item) < batch:
        raise RecordingError(f"there is no sequence {item}: recorded are {numbers(range(batch))}.")


def numbers(kept: Sequence[int]) -> str:
    """Numbers in words, runs as ranges.

    >>> numbers([0, 1, 2, 3, 7, 9])
    '0 to 3, 7 and 9'
    """
    if isinstance(kept, range) and kept.step == 1:
        runs = [(kept[0], kept[-1])] if kept else []
    else:
        # a number less its place is the same all along a run
        places = itertools.groupby(enumerate(sorted(kept)), lambda pair: pair[1] - pair[0])
        runs = [(run[0][1], run[-1][1]) for run in (list(members) for _, members in places)]
    words: list[str] = []
    for first, last in runs:
        words += [f"{first} to {last}"] if last - first > 1 else [str(number) for number in sorted({first, last})]
    if len(words) > 12:
        words = [*words[:6], "...", words[-1]]
    return in_words(words) or "none"


def counted(number: int, noun: str) -> str:
    """``1 head``, ``2 heads``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
