"""Two recordings on one page: two models, two prompts, or one model before and after something was done to it."""

import os
from pathlib import Path

from multihead.files import written_whole
from multihead.front.document import Node, document_of, texts_of
from multihead.recording import Recording
from multihead.view.codec import ACCURACY
from multihead.view.entries import Data
from multihead.view.opening import start as opening
from multihead.view.page import check_shown, check_size, html_of, layers_of


def comparison(
    first: Recording,
    second: Recording,
    *,
    names: tuple[str, str] | None = None,
    title: str | None = None,
    item: int = 0,
    accuracy: float = ACCURACY,
) -> str:
    """The page that shows two recordings: their maps side by side, moved together, and the first less the second.

    A layer stands against the other recording's layer of the same number and name, or else of the same number; a head
    against the head of the same number. Where two layers have different numbers of queries or keys there is no
    difference, and the page says so.

    Args:
        first: called A on the page.
        second: called B.
        names: what the two are called; None: their models, or "first" and "second".
        title: the page's; None: both names.
        item: the sequence of each batch.
        accuracy: as for :func:`multihead.view.page.page`.

    Raises:
        ValueError: as :func:`multihead.view.page.page`, of either, or of both together if they do not fit one page.
    """
    pair = (first, second)
    called = _names(first, second) if names is None else names
    for recording in pair:
        check_shown(recording, item)
    check_size((*first.layers, *second.layers), item, accuracy)
    data, texts, entries, reached, told = Data(), {}, [], 0.0, {}
    for place, recording in enumerate(pair):
        own = texts_of(recording, item)
        found, accurate, more = layers_of(recording, own, item, accuracy, data)
        entries += [_placed(entry, place, len(texts)) for entry in found]
        texts |= {f"{'AB'[place]}: {name}": tokens for name, tokens in own.items()}
        reached, told = max(reached, accurate), told | more
    told |= {
        f"{letter}, {key}": str(value)
        for letter, recording in zip("AB", pair, strict=True)
        for key, value in recording.provenance.items()
    }
    document = document_of(
        Recording((), {}, {}),
        entries,
        texts=texts,
        title=f"{called[0]} beside {called[1]}" if title is None else title,
        start=opening(first, item=item),
        accuracy=reached,
        told=told,
    )
    return html_of({**document, "recordings": list(called)}, data)


def write_comparison(
    first: Recording,
    second: Recording,
    path: str | os.PathLike[str],
    *,
    names: tuple[str, str] | None = None,
    title: str | None = None,
    item: int = 0,
    accuracy: float = ACCURACY,
) -> Path:
    """Write :func:`comparison` to a file, whole or not at all, over one that is there; the path.

    Raises:
        OSError, ValueError: as :func:`multihead.view.page.write_page`.
    """
    text = comparison(first, second, names=names, title=title, item=item, accuracy=accuracy)
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
    return Path(path)


def _placed(entry: Node, place: int, before: int) -> Node:
    """A layer's entry among those of both recordings, whose texts stand one after the other."""
    moved = {name: int(str(entry[name])) + before for name in ("query_text", "key_text")}
    return {**entry, **moved, "recording": place}


def _names(first: Recording, second: Recording) -> tuple[str, str]:
    models = [recording.provenance.get("model") for recording in (first, second)]
    if all(models) and models[0] != models[1]:
        return str(models[0]), str(models[1])
    return "first", "second"
