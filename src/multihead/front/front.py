"""The page of a served recording, and of a large one's file before torch is there. ``docs/server.md``."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from multihead.errors import RecordingError
from multihead.front.document import Node, document_of, served_entry, shrunk, texts_of, with_traits
from multihead.front.html import bundle, json_in_html, title_in_html
from multihead.front.opening import opens_by_text, start_by_text
from multihead.recording.checked import CheckedFile
from multihead.recording.outline import RecordingOutline, check_item
from multihead.recording.ranges import are_simple, span_of
from multihead.recording.schema import LayerHeader
from multihead.recording.shapes import STATISTICS
from multihead.recording.traits import READ, HeadTraits, Seen, head_traits, kept_queries, recorded, seen_in_ranges
from multihead.sizes import axes_of
from multihead.web import Answer, Refusal, Watched

MEASURED_PAIRS = 1 << 29
"""Pairs of a query and a key, over all layers and heads, that are looked at while someone waits: a few seconds."""

_SHELL = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="multihead.css">
</head>
<body>
<div id="multihead"></div>
<noscript>This page draws what its server computes, so it needs JavaScript.</noscript>
<script type="application/json" id="multihead-document">{document}</script>
<script src="multihead.js"></script>
</body>
</html>
"""


class Front:
    """A page whose numbers come from elsewhere, and the viewer that shows it.

    Args:
        document: of the page.
        watched: the files that must stay as they are.
    """

    last = "multihead.js"
    """What a browser asks for last of it."""

    def __init__(self, document: Node, watched: Sequence[Watched] = ()) -> None:
        self.document, self.watched = document, tuple(watched)
        self._page = _SHELL.format(title=title_in_html(document), document=json_in_html(document)).encode()

    def answer(self, name: str) -> Answer | None:
        """The page, its script or its style; None for what is asked of others.

        Raises:
            Refusal: a file is not what it was.
        """
        self.check()
        match name:
            case "":
                return Answer(self._page, "text/html; charset=utf-8")
            case "multihead.js":
                return Answer(bundle()[0].encode(), "text/javascript; charset=utf-8")
            case "multihead.css":
                return Answer(bundle()[1].encode(), "text/css; charset=utf-8")
        return None

    def check(self) -> None:
        """Raise a refusal where a file is not what it was: what is mapped from it may be gone."""
        for file in self.watched:
            if not file.same():
                raise Refusal(409, f"{file.path.name} has been changed since it was opened: open it again.")


def served_document(
    recording: RecordingOutline,
    overviews: Sequence[np.ndarray],
    traits: Sequence[Sequence[HeadTraits]],
    *,
    item: int,
    title: str | None,
    start: Mapping[str, object],
    kind: str = "server",
    told: Mapping[str, str] | None = None,
    pictures: Mapping[str, Node] | None = None,
) -> Node:
    """The document of a page whose numbers come from a server, or from a notebook.

    Args:
        recording: what it is about.
        overviews: of each layer, (H, R, C), as :func:`multihead.front.document.shrunk` gives them.
        traits: of each layer's heads.
        item: the sequence of the batch.
        title: the page's; None: the model's name.
        start: what is chosen when the page opens.
        kind: where numbers come from.
        told: what else the provenance says.
        pictures: what there is to say about texts that are no words, by their names.
    """
    texts = texts_of(recording, item)
    entries = [served_entry(layer, means, texts) for layer, means in zip(recording.layers, overviews, strict=True)]
    return document_of(
        recording,
        with_traits(entries, traits),
        texts=texts,
        title=title,
        start=start,
        accuracy=0.0,
        source={"kind": kind},
        told=told,
        pictures=pictures,
    )


def front_of(path: Path, *, item: int = 0, title: str | None = None) -> Front | None:
    """The page of a recording's file, made without torch: the same that :class:`multihead.view.served.Served` makes.

    Returns:
        None where it cannot be made so: where the recording is so small that its page opens with what its heads look
        at, holds no block map of some layer, or masks that tensors say. And where something is wrong with the file:
        whoever opens it says what.

    Memory: the page, and one layer's block map.
    """
    watched = Watched.of(path)
    try:
        file = CheckedFile.open(path)
        recording = file.outline
        for layer in recording.layers:
            check_item(item, layer.sizes.batch)
        if not _is_said(file, recording):
            return None
        layers = file.header.layers
        overviews = [_overview(file, layer, item) for layer in layers]
        traits = [_traits(file, layer, item) for layer in layers]
        start = start_by_text(recording, item)
        document = served_document(recording, overviews, traits, item=item, title=title, start=start)
        found = Front(document, [watched])
    except (RecordingError, ValueError):
        return None
    return found if watched.same() else None


def _is_said(file: CheckedFile, recording: RecordingOutline) -> bool:
    """Whether the file says all that its page shows, so that nothing need be computed from queries and keys."""
    pairs = sum(len(layer.heads) * layer.query_count * layer.sizes.keys for layer in recording.layers)
    return (
        opens_by_text(recording)
        and pairs > MEASURED_PAIRS
        and are_simple(file.header.masks)
        and all(_says_enough(layer) for layer in file.header.layers)
    )


def _says_enough(layer: LayerHeader) -> bool:
    held = layer.tensors
    sinks_are_known = "sinks" not in held or STATISTICS + "sink" in held
    return STATISTICS + "blocks" in held and "weights" not in held and sinks_are_known


def _overview(file: CheckedFile, layer: LayerHeader, item: int) -> np.ndarray:
    """(H, R, C) of a layer's recorded block map.

    Raises:
        ValueError: it is damaged, or holds what are no weights.
    """
    means = shrunk(file.array(layer.tensors[STATISTICS + "blocks"])[item])
    if not np.isfinite(means).all():
        raise ValueError("a block map holds NaN or inf")
    return means


def _traits(file: CheckedFile, header: LayerHeader, item: int) -> list[HeadTraits]:
    """What a layer's statistics say of its heads."""
    layer, queries, learned = header.layer, kept_queries(header.layer), "sinks" in header.tensors
    own = {name: file.array(header.tensors[STATISTICS + name]) for name in READ if STATISTICS + name in header.tensors}
    own = {name: array[item] if axes_of(name)[0] == "batch" else array for name, array in own.items()}
    if header.mask is None:
        first, stop = np.zeros_like(queries), np.full_like(queries, layer.sizes.keys)
    else:
        first, stop = span_of(file.header.masks, header.mask, queries, layer.sizes)
    # padding is said by tensors, so there is none
    real = np.ones(len(queries), dtype=bool)
    seen = Seen.of(layer, real, *seen_in_ranges(first[None], stop[None], real, layer.sizes.keys))
    return head_traits(layer, recorded(layer, own, seen, learned=learned), seen, learned=learned)
