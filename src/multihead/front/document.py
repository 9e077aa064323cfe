"""A recording as the document of ``docs/page-format.md``: what can be said of it without torch."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from multihead.recording.outline import PROMPT_TOKENS, LayerOutline, RecordingOutline
from multihead.recording.traits import HeadTraits
from multihead.version import __version__

VERSION = 2
"""Of the page format."""

CELLS = 48
"""Cells a side of a head's overview."""

Node = dict[str, object]
"""A piece of the JSON document."""

WEIGHTS = ("q", "k", "q_shift", "k_shift", "steps", "lse", "bias", "weights")
"""What a layer's entry holds its weights in, null where they are elsewhere."""

NUMBERS = ("entropy", "distance", "sink", "concentration")
"""The traits by which the page puts heads in order, as :class:`multihead.recording.HeadTraits` names them."""

_DTYPES = {"f64": "<f8", "f32": "<f4", "i32": "<i4", "u16": "<u2", "u8": "u1"}


def inline(array: np.ndarray, dtype: str) -> Node:
    """A reference that carries its array, for a document without a data block."""
    values = plain(array, dtype)
    return {
        "base64": base64.b64encode(values.tobytes()).decode("ascii"),
        "dtype": dtype,
        "shape": list(values.shape),
    }


def plain(array: np.ndarray, dtype: str) -> np.ndarray:
    """An array as one of the contract's types of numbers, in C order."""
    return np.ascontiguousarray(array, dtype=_DTYPES[dtype])


@dataclass(frozen=True)
class Placement:
    """Where a layer's queries stand in their text."""

    positions: tuple[int, ...] | None
    """Of the recorded queries; None for every token in order."""
    offset: int
    """From a position to the position that masks compare with keys."""
    before: int
    """Tokens of the query text that stand before the model's first query: those that a cache held."""
    tokens: int
    """Length of the query text."""


def document_of(
    recording: RecordingOutline,
    layers: list[Node],
    *,
    texts: dict[str, list[str]],
    title: str | None,
    start: Mapping[str, object],
    accuracy: float,
    source: Node | None = None,
    told: Mapping[str, str] | None = None,
    pictures: Mapping[str, Node] | None = None,
) -> Node:
    """The whole document.

    Args:
        recording: what it is about.
        layers: their entries.
        texts: of :func:`texts_of`.
        title: the page's; None: the model's name.
        start: what is chosen when the page opens.
        accuracy: the largest difference of a weight that is drawn.
        source: where numbers come from; None: the page itself.
        told: what else the provenance says.
        pictures: what there is to say about texts that are no words, by their names.
    """
    model = recording.provenance.get("model")
    provenance = {str(key): str(value) for key, value in recording.provenance.items()}
    prompts = _prompts(recording)
    return {
        "format": "multihead-page",
        "version": VERSION,
        "title": title if title is not None else f"Attention of {model}" if model else "Attention",
        "provenance": {**provenance, "page": f"multihead {__version__}", **(told or {})},
        "accuracy": accuracy,
        "source": source,
        "texts": [
            {"name": name, "tokens": tokens, "prompt": prompts.get(name), **(pictures or {}).get(name, {})}
            for name, tokens in texts.items()
        ],
        "start": dict(start),
        "layers": layers,
    }


def _prompts(recording: RecordingOutline) -> dict[str, int]:
    """Of a generation, how many tokens of the text that the model went on with were its prompt."""
    told = recording.provenance.get(PROMPT_TOKENS, "")
    return {recording.layers[-1].query_text: int(told)} if recording.layers and told.isdecimal() else {}


def texts_of(recording: RecordingOutline, item: int) -> dict[str, list[str]]:
    """Each text's tokens, in order of first use; positions where the recording does not hold them."""
    lengths: dict[str, int] = {}
    for layer in recording.layers:
        lengths[layer.query_text] = max(lengths.get(layer.query_text, 0), layer.sizes.queries)
        lengths[layer.key_text] = max(lengths.get(layer.key_text, 0), layer.sizes.keys)
    texts = {}
    for name, length in lengths.items():
        known = recording.texts.get(name)
        texts[name] = [str(position) for position in range(length)] if known is None else list(known[item])
    return texts


def placement(layer: LayerOutline, texts: dict[str, list[str]]) -> Placement:
    """Where this layer's queries stand.

    Raises:
        ValueError: the texts have other lengths than the attention.
    """
    queries, keys = layer.sizes.queries, layer.sizes.keys
    query_tokens, key_tokens = len(texts[layer.query_text]), len(texts[layer.key_text])
    if key_tokens != keys:
        raise ValueError(
            f"layer {layer.index} has {keys} keys, but the text {layer.key_text!r} has {key_tokens} tokens: record it "
            "with its own tokens."
        )
    if query_tokens == queries:
        return Placement(layer.queries, keys - queries, 0, queries)
    if layer.query_text == layer.key_text and queries < keys:
        before = keys - queries
        kept = range(queries) if layer.queries is None else layer.queries
        return Placement(tuple(before + query for query in kept), 0, before, keys)
    raise ValueError(
        f"layer {layer.index} has {queries} queries, but the text {layer.query_text!r} has {query_tokens} tokens: "
        "record it with its own tokens."
    )


def served_entry(layer: LayerOutline, means: np.ndarray, texts: dict[str, list[str]]) -> Node:
    """One layer of the document of a page whose numbers come from a server.

    Args:
        layer: the layer.
        means: (H, R, C) of its overview, as :func:`shrunk` gives them.
        texts: of :func:`texts_of`.
    """
    cells, peak = quantised(means)
    return {
        **named_entry(layer, placement(layer, texts), texts),
        **dict.fromkeys((*WEIGHTS, "mask", "sink", "entropy", "blocks")),
        "overview": inline(cells, "u8"),
        "overview_peak": inline(peak, "f32"),
    }


def named_entry(layer: LayerOutline, where: Placement, texts: dict[str, list[str]]) -> Node:
    """What a layer is, wherever its numbers come from."""
    names = list(texts)
    return {
        "index": layer.index,
        "name": layer.name,
        "heads": list(layer.heads),
        "query_text": names.index(layer.query_text),
        "key_text": names.index(layer.key_text),
        "queries": None if where.positions is None else list(where.positions),
        "query_offset": where.offset,
        "rows": layer.query_count,
        "keys": layer.sizes.keys,
        "softcap": layer.softcap,
    }


def with_traits(entries: Sequence[Node], traits: Sequence[Sequence[HeadTraits]]) -> list[Node]:
    """The entries of all layers, each with the traits of its heads."""
    nodes = [{name: [getattr(one, name) for one in heads] for name in ("label", *NUMBERS)} for heads in traits]
    return [{**entry, "traits": node} for entry, node in zip(entries, nodes, strict=True)]


@np.errstate(invalid="ignore")
def shrunk(blocks: np.ndarray) -> np.ndarray:
    """(H, R, C) mean weights of blocks as at most CELLS × CELLS cells a head, float64: means of neighbouring blocks.

    Cell i of c holds the blocks from ⌊i n / c⌋ to ⌈(i + 1) n / c⌉, as in torch's adaptive_avg_pool2d.
    """
    for axis in (1, 2):
        count = blocks.shape[axis]
        cells = min(CELLS, count)
        bounds = [(place * count // cells, -(-(place + 1) * count // cells)) for place in range(cells)]
        index = (slice(None),) * axis
        means = [blocks[(*index, slice(*ends))].mean(axis, dtype=np.float64) for ends in bounds]
        blocks = np.stack(means, axis) if means else blocks
    return blocks.astype(np.float64)


@np.errstate(invalid="ignore")
def quantised(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """u8 cells, round(255 √(mean / peak)), and the f32 peaks."""
    means = means.clip(min=0.0)
    peak = means.max((1, 2), initial=0.0)
    cells = 255 * np.sqrt(means / np.where(peak == 0, 1.0, peak)[:, None, None])
    return cells.round().astype(np.uint8), peak.astype(np.float32)
