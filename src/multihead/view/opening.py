"""What to show first: of a token, the link that tells most."""

from collections.abc import Sequence

from multihead.conventions import in_words
from multihead.errors import RecordingError, SourceError
from multihead.front.opening import asking_text, likely_token
from multihead.recording import Link, Recording
from multihead.recording.words import is_mark

_NEAR = 2
_FAINT = 0.1
_LINKS = 400


def telling_link(links: Sequence[Link], recording: Recording) -> Link | None:
    """The strongest link that is no matter of position: to a word, not to the token itself or a close neighbour.

    Where there is none above a tenth, the strongest of all; None where there is none at all.
    """
    one_text = {layer.index: layer.query_text == layer.key_text for layer in recording.layers}
    offsets = {layer.index: layer.sizes.offset for layer in recording.layers}
    for link in links:
        far = not one_text[link.layer] or abs(link.query + max(offsets[link.layer], 0) - link.key) > _NEAR
        if far and link.weight >= _FAINT and not is_mark(link.key_token):
            return link
    return links[0] if links else None


def start(recording: Recording, token: str | int | None = None, *, item: int = 0) -> dict[str, object]:
    """What a page opens with: a token, and the layer and head that tell most about it.

    Args:
        recording: what was seen.
        token: as for :meth:`Recording.positions`; None: a likely one.
        item: the sequence of the batch.

    Raises:
        SourceError: the token is in no text.
    """
    if token is None:
        token = likely_token(recording, item)
    asking = asking_text(recording)
    names = [name for name in (asking, *recording.texts) if name in recording.texts]
    text, position = _found(recording, token, list(dict.fromkeys(names)), item)
    asks = any(layer.query_text == text for layer in recording.layers)
    try:
        links = recording.top(position, text=text, count=_LINKS, item=item, direction="from" if asks else "to")
    except (RecordingError, SourceError):
        # this token's query was not recorded, or its text has no tokens; the page can be opened at it all the same
        links = []
    link = telling_link(links, recording)
    order = list(dict.fromkeys(name for layer in recording.layers for name in (layer.query_text, layer.key_text)))
    chosen = {} if link is None else {"layer": link.layer, "heads": [link.head]}
    return {**chosen, "text": order.index(text), "token": position}


def _found(recording: Recording, token: str | int, names: Sequence[str], item: int) -> tuple[str, int]:
    """The first text that has the token, and where."""
    failures = []
    if isinstance(token, int) and asking_text(recording) not in recording.texts:
        return asking_text(recording), token
    for name in names:
        try:
            return name, recording.positions(token, name, item)[0]
        except SourceError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    raise SourceError(
        f"the recording holds no text in which to look for {token!r}: its texts are "
        f"{in_words(recording.texts) or 'none'}."
    )
