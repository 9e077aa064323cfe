"""What a figure is asked to show: layer, heads, token, and the weights between them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from multihead.conventions import in_words, nearest
from multihead.counting import whole_numbers
from multihead.errors import RecordingError, SourceError
from multihead.front.opening import asking_text, likely_token
from multihead.recording import Layer, Link, Recording
from multihead.recording.outline import check_item, numbers
from multihead.recording.query import token_at, weights
from multihead.view.opening import telling_link

_LINKS = 400
_BAND = 1 << 22


@dataclass(frozen=True)
class Asked:
    """What the caller chose; None where the figure is to choose."""

    layer: int | None
    heads: Sequence[int] | None
    token: str | int | None
    queries: Sequence[int] | None
    keys: Sequence[int] | None
    item: int


@dataclass(frozen=True)
class Found:
    """One layer, some of its heads, and the token that a figure is about."""

    layer: Layer
    heads: tuple[int, ...]
    token: str
    place: int
    """Of the token in its text."""
    asks: bool
    """Whether it is a query; else a key."""
    number: int
    """The model's own query or key number of the token."""

    def queries(self, asked: Asked) -> Sequence[int]:
        """The query numbers to draw."""
        if asked.queries is not None:
            return whole_numbers("queries", asked.queries)
        return range(self.layer.sizes.queries) if self.layer.queries is None else self.layer.queries

    def keys(self, asked: Asked) -> Sequence[int]:
        """The key numbers to draw."""
        return range(self.layer.sizes.keys) if asked.keys is None else whole_numbers("keys", asked.keys)


def check(recording: Recording, asked: Asked, kind: str) -> None:
    """Raise unless what is asked can mean something for this kind of figure.

    Raises:
        SourceError: the recording holds no layer, or no token.
        RecordingError: there is no such sequence in the batch.
        ValueError: something is chosen of which nothing is left, or that this kind does not show.
    """
    if not recording.layers:
        raise SourceError("the recording holds no layer, so there is nothing to draw: observe at least one.")
    check_item(asked.item, recording.batch)
    for name in ("heads", "queries", "keys"):
        chosen = getattr(asked, name)
        if chosen is None:
            continue
        chosen = whole_numbers(name, chosen)
        if not chosen:
            raise ValueError(f"{name}=[] leaves nothing to draw: None draws all.")
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"{name} {list(chosen)} names one twice.")
    wrong = [name for name in ("token", "queries", "keys") if getattr(asked, name) is not None]
    if kind == "heads" and wrong:
        raise ValueError(
            f"kind='heads' shows whole maps, so {in_words(wrong)} choose nothing: leave them out, or draw kind='map'."
        )


def layers_and_heads(recording: Recording, asked: Asked) -> Iterator[tuple[Layer, tuple[int, ...]]]:
    """Every chosen layer with its chosen heads, without those that have none.

    Raises:
        RecordingError: a layer or head was not recorded, or neither blocks nor what they are measured from.
        SourceError: the text is empty.
    """
    layers = recording.layers if asked.layer is None else (recording.layer(asked.layer),)
    kept = {head for layer in layers for head in layer.heads}
    wanted = kept if asked.heads is None else set(whole_numbers("heads", asked.heads))
    if wanted - kept:
        raise RecordingError(
            f"head {numbers(sorted(wanted - kept))} was not recorded: recorded are {numbers(sorted(kept))}."
        )
    for layer in layers:
        _check_tokens(layer)
        complete = layer.recomputes or layer.shape_of("weights") is not None
        if layer.shape_of("blocks") is None and not complete:
            raise RecordingError(
                f"layer {layer.index} holds neither an overview nor what it is measured from: observe with qk=True, or "
                "with Statistics(blocks=(16, 16))."
            )
        heads = tuple(head for head in layer.heads if head in wanted)
        if heads:
            yield layer, heads


def look_for(recording: Recording, asked: Asked) -> Found:
    """The token, and the layer and heads that are chosen or else tell most about it.

    Raises:
        SourceError: the token is not there, or a text is empty.
        RecordingError: a layer, head or query was not recorded, or nothing to recompute weights from.
    """
    layers = recording.layers if asked.layer is None else (recording.layer(asked.layer),)
    for layer in layers:
        _check_tokens(layer)
    text, place = _place_of(recording, layers, asked)
    asks = any(layer.query_text == text for layer in layers)
    heads = None if asked.heads is None else whole_numbers("heads", asked.heads)
    if heads is None or len(layers) > 1:
        indices = [layer.index for layer in layers]
        link = _telling(recording, place, text, indices, heads, asks=asks, item=asked.item)
        layer = layers[0] if link is None else recording.layer(link.layer)
        heads = heads or (layer.heads[0] if link is None else link.head,)
    else:
        layer = layers[0]
    absent = sorted(set(heads) - set(layer.heads))
    if absent:
        raise RecordingError(
            f"head {numbers(absent)} of layer {layer.index} was not recorded: its heads are {numbers(layer.heads)}."
        )
    tokens = recording.texts[text][asked.item] if text in recording.texts else None
    number = layer.query_of_place(place, len(tokens) if tokens is not None else layer.sizes.queries) if asks else place
    if number is None:
        raise RecordingError(f"the token at {place} asks nobody in layer {layer.index}: it was in the cache by then.")
    return Found(layer, heads, token_at(tokens, place), place, asks, number)


def pooled(
    layer: Layer, head: int, queries: Sequence[int], keys: Sequence[int], item: int, cell: tuple[int, int]
) -> np.ndarray:
    """One head's map, (R, C): of each cell of queries × keys the largest weight. A band of rows at a time."""
    high, wide = cell
    height = max(high, _BAND // len(keys) // high * high)
    bands = []
    for top in range(0, len(queries), height):
        band = weights(layer, queries[top : top + height], keys, heads=[head], item=item)[0].cpu().numpy()
        band = np.maximum.reduceat(finite(band, layer), range(0, len(band), high), axis=0)
        bands.append(np.maximum.reduceat(band, range(0, len(keys), wide), axis=1))
    return np.concatenate(bands)


def finite(found: np.ndarray, layer: Layer) -> np.ndarray:
    """The same numbers.

    Raises:
        RecordingError: one of them is NaN or infinite.
    """
    if not np.isfinite(found).all():
        raise RecordingError(f"layer {layer.index} holds weights that are NaN or infinite, which nothing can draw.")
    return found


def one_of(name: str, value: str, known: Sequence[str]) -> str:
    """``value`` if it is known.

    Raises:
        ValueError: it is not; the message says what is.
    """
    if value not in known:
        near = nearest(str(value), known, count=1)
        meant = f": did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"{name}={value!r} is none of {in_words(map(repr, known), 'and')}{meant}")
    return value


def count_of(heads: Sequence[int], noun: str) -> str:
    """``1 head``, ``3 heads``."""
    return f"{len(heads)} {noun}{'' if len(heads) == 1 else 's'}"


def _check_tokens(layer: Layer) -> None:
    if not layer.query_count or not layer.sizes.keys or not layer.heads:
        sizes = f"{count_of(layer.heads, 'head')}, {layer.query_count} queries and {layer.sizes.keys} keys"
        raise SourceError(f"layer {layer.index} has {sizes}, so there is nothing to draw.")


def _place_of(recording: Recording, layers: Sequence[Layer], asked: Asked) -> tuple[str, int]:
    """The text that has the token, and its first place there; a likely token where none is asked for."""
    if asked.token is None:
        whole_recording = asked.layer is None or layers[0].query_text == asking_text(recording)
        of = recording if whole_recording else replace(recording, layers=tuple(layers))
        return asking_text(of), likely_token(of, asked.item)
    asking, answering = [layer.query_text for layer in reversed(layers)], [layer.key_text for layer in layers]
    failures: list[SourceError] = []
    for name in dict.fromkeys([*asking, *answering]):
        try:
            return name, recording.positions(asked.token, name, asked.item)[0]
        except SourceError as error:
            failures.append(error)
    raise failures[0]


def _telling(
    recording: Recording,
    place: int,
    text: str,
    layers: Sequence[int],
    heads: Sequence[int] | None,
    *,
    asks: bool,
    item: int,
) -> Link | None:
    direction = "from" if asks else "to"
    links = recording.top(place, text=text, count=_LINKS, layers=layers, heads=heads, item=item, direction=direction)
    return telling_link(links, recording)
