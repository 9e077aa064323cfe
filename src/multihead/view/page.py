"""The page: one HTML file that shows a recording offline. ``docs/page-format.md`` is the contract with the viewer."""

import base64
import math
import os
import zlib
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from multihead.files import written_whole
from multihead.front.document import Node, document_of, placement, texts_of
from multihead.front.html import bundle, json_in_html, static, title_in_html
from multihead.recording import Layer, Recording
from multihead.recording.whole import check_recomputes
from multihead.view.codec import ACCURACY, Encoded, encode_all
from multihead.view.entries import Data, layer_entry, sevens
from multihead.view.heads import described
from multihead.view.opening import start as opening
from multihead.view.pictures import Pictures, first_token, named, nodes
from multihead.view.rounded import compressed_bytes, rounded

LARGEST_PAGE = 64_000_000
"""Bytes that a page may have; a browser opens more only with patience."""

_BITS = 17.5
_TEXT = 1.17
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'wasm-unsafe-eval'; img-src data:; "
    "worker-src blob:"
)
_SHELL = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<div id="multihead"></div>
<noscript>This page computes the weights that it draws, so it needs JavaScript; it loads nothing.</noscript>
<script type="application/json" id="multihead-document">{document}</script>
<script type="text/plain" id="multihead-data" data-coding="{coding}">{data}</script>
<script type="text/plain" id="multihead-viewer" data-coding="{coding}">{viewer}</script>
<script>{loader}</script>
</body>
</html>
"""


def page(
    recording: Recording,
    *,
    title: str | None = None,
    start: Mapping[str, object] | None = None,
    item: int = 0,
    accuracy: float = ACCURACY,
    pictures: Pictures | None = None,
    quotable: bool = False,
) -> str:
    """The page that shows a recording: one HTML file with everything in it, for any browser, without a network.

    Args:
        recording: with q, k and lse in every layer, or with the weights themselves.
        title: the page's; None: the model's name.
        start: what is chosen when the page opens, e.g. ``{"layer": 5, "heads": [9], "text": 0, "token": 18}``; each
            key may be missing. None: the longest word, and the layer and head that tell most about it.
        item: the sequence of the batch.
        accuracy: the largest difference between a weight drawn and the recorded one. The page states what was reached;
            it is 7.7e-6 for weights that were given.
        pictures: for texts that are no words what their tokens are, by the text's name: ``{"text": Picture("cat.jpg",
            (14, 14))}``; see :mod:`multihead.view.pictures`.
        quotable: for a page that JSON or an attribute will hold: its data are base64, a seventh larger in a file but
            half as large once quoted.

    Returns:
        The HTML, the same for the same recording. Size: O(tokens) for each head; about 6 MB for 512 tokens and 72
        heads of 32 dimensions. Of weights that were given it is O(tokens²).

    Raises:
        ValueError: the recording holds no layer; its texts do not fit; a picture fits no text; or the page would pass
            64 MB.
        RecordingError: a layer holds neither weights nor q, k and the log-sum-exp.
        FileNotFoundError: the viewer's bundle is missing from this installation.
        ImportError: there are pictures and no Pillow.
    """
    check_shown(recording, item)
    recording, shown = named(recording, pictures, item), nodes(pictures)
    texts = texts_of(recording, item)
    check_size(recording.layers, item, accuracy)
    data = Data()
    layers, reached, told = layers_of(recording, texts, item, accuracy, data)
    document = document_of(
        recording,
        layers,
        texts=texts,
        title=title,
        start=opening(recording, first_token(recording, pictures), item=item) if start is None else start,
        accuracy=reached,
        told=told,
        pictures=shown,
    )
    return html_of(document, data, quotable=quotable)


def layers_of(
    recording: Recording, texts: dict[str, list[str]], item: int, accuracy: float, data: Data
) -> tuple[list[Node], float, dict[str, str]]:
    """The document's entries of all layers, the accuracy that was reached, and what there is to say about it.

    Raises:
        ValueError: the texts have other lengths than the attention.
    """
    for layer in recording.layers:
        placement(layer, texts)
    entries, reached, told = [], 0.0, {}
    computed = [layer for layer in recording.layers if layer.weights is None]
    with closing(encode_all(computed, item=item, accuracy=accuracy)) as encodings:
        for layer in recording.layers:
            encoded = next(encodings) if layer.weights is None else rounded(layer.weights, item=item)
            reached = max(reached, encoded.accuracy)
            if isinstance(encoded, Encoded) and encoded.rows < layer.query_count:
                told["accuracy measured on"] = f"{encoded.rows} of {layer.query_count} rows of each head"
            entries.append(layer_entry(layer, encoded, texts, item, data))
    return described(entries, recording, item), reached, told


def html_of(document: Node, data: Data, *, quotable: bool = False) -> str:
    """The page of a document and its data; ``quotable`` as for :func:`page`."""
    script, style = bundle()
    viewer = zlib.compress(script.encode(), 9)
    return _SHELL.format(
        policy=_POLICY,
        title=title_in_html(document),
        style=style,
        document=json_in_html(document),
        coding="base64" if quotable else "sevens",
        data=data.base64() if quotable else sevens(data.compressed()),
        viewer=base64.b64encode(viewer).decode("ascii") if quotable else sevens(viewer),
        loader=static("loader.js"),
    )


def write_page(
    recording: Recording,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    start: Mapping[str, object] | None = None,
    item: int = 0,
    accuracy: float = ACCURACY,
    pictures: Pictures | None = None,
) -> Path:
    """Write :func:`page` to a file, whole or not at all, over one that is there; the path.

    A symbolic link stays, and the file that it leads to is written.

    Raises:
        OSError: the file cannot be written; ``IsADirectoryError`` over a folder, ``FileExistsError`` over a pipe, a
            socket or a device.
        ValueError, RecordingError: as :func:`page`.
    """
    text = page(recording, title=title, start=start, item=item, accuracy=accuracy, pictures=pictures)
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
    return Path(path)


def check_shown(recording: Recording, item: int) -> None:
    """Raise ``ValueError`` or ``RecordingError`` unless there is something of this sequence to show."""
    if not recording.layers:
        raise ValueError("the recording holds no layer, so there is nothing to show: observe at least one.")
    batch = min(layer.sizes.batch for layer in recording.layers)
    if not 0 <= item < batch:
        raise ValueError(f"item={item} out of range: the recording holds {batch} sequences, 0 to {batch - 1}.")
    for layer in recording.layers:
        if layer.shape_of("weights") is None:
            check_recomputes(layer)


def check_size(layers: tuple[Layer, ...], item: int, accuracy: float) -> None:
    """Refuse a page that would be too large, and say what fits."""
    sizes = _sizes(layers, item, accuracy)
    total, room = sum(sizes), LARGEST_PAGE - sum(map(len, bundle()))
    if total <= room:
        return
    heads = sum(len(layer.heads) for layer in layers)
    tokens = max(max(layer.query_count, layer.sizes.keys) for layer in layers)
    # given weights grow with the square of the tokens
    power = 1.0 if any(layer.shape_of("weights") is None for layer in layers) else 0.5
    fitting = {
        f"{math.floor(room / max(sizes))} of the {len(layers)} layers": room >= max(sizes),
        f"{math.floor(heads * room / total)} of the {heads} heads": heads * room >= total,
        f"the first {_two_digits(tokens * (room / total) ** power)} of the {tokens} tokens": True,
    }
    raise ValueError(
        f"the page would have about {total / 1e6:.0f} MB, more than {LARGEST_PAGE / 1e6:.0f} MB: choose fewer, for "
        "example "
        f"{', or '.join(words for words, fits in fitting.items() if fits)}. Or save the recording and serve it: "
        "multihead view run.safetensors --serve."
    )


def fits(recording: Recording, *, item: int = 0, accuracy: float = ACCURACY, most: int = LARGEST_PAGE) -> bool:
    """Whether the page of a recording stays within ``most`` bytes, as estimated.

    Raises:
        ValueError: as :func:`page`, but for its size.
    """
    check_shown(recording, item)
    return sum(_sizes(recording.layers, item, accuracy)) <= most - sum(map(len, bundle()))


def _sizes(layers: tuple[Layer, ...], item: int, accuracy: float) -> list[float]:
    return [_estimated(layer, item, accuracy) for layer in layers]


def _estimated(layer: Layer, item: int, accuracy: float) -> float:
    """Bytes of one layer in the page."""
    if layer.weights is not None:
        return compressed_bytes(layer.weights, item=item) * _TEXT
    bits = _BITS + math.log2(ACCURACY / accuracy) if accuracy > 0 else _BITS
    heads, queries, keys = len(layer.heads), layer.query_count, layer.sizes.keys
    dim = (layer.shape_of("q") or (0,))[-1]
    numbers = heads * (queries + keys) * dim * min(max(bits, 1.0), 32.0) / 8
    bias = 0 if layer.bias is None else (heads if layer.bias.shape[1] != 1 else 1) * queries * keys * 3.7
    return (numbers + bias + heads * (6 * queries + keys)) * _TEXT


def _two_digits(number: float) -> int:
    scale = 10 ** max(0, math.floor(math.log10(max(number, 1))) - 1)
    return int(number // scale * scale)
