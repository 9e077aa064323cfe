"""Which text each layer's queries and keys belong to, and the tokens of each text.

A model has one text, or a source and a target (encoder-decoder). Who attends from where to where is decided by what is
certain first: the host said so, the module's path says so, the numbers of queries and keys say so.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from multihead.errors import ObservationError
from multihead.lens.measuring import Sight
from multihead.masks import Sizes
from multihead.recording import Layer
from multihead.recording.words import Tokens, token_lists

_SELF = re.compile(r"self", re.IGNORECASE)
_CROSS = re.compile(r"cross|encoder_attn|encdec|multihead_attn", re.IGNORECASE)
_SIDE = re.compile(r"(?:^|[._])(encoder|decoder)", re.IGNORECASE)


def with_texts(
    sights: Sequence[Sight], tokens: Tokens | None, source: Tokens | None
) -> tuple[tuple[Layer, ...], dict[str, list[list[str]]]]:
    """The layers with the names of their texts, and the texts.

    Args:
        sights: what was seen in one run.
        tokens: of the text; of the target, where there is a source.
        source: of the source.

    Raises:
        ObservationError: the tokens do not fit the layers; the message says how many came and how many there are.
        TypeError: ``tokens`` or ``source`` are no lists of strings.
    """
    roles = _roles(sights, two=source is not None)
    two = any("source" in pair for pair in roles)
    given = {"target" if two else "text": token_lists("tokens", tokens), "source": token_lists("source", source)}
    if source is not None and not two:
        raise ObservationError("source was given, but no layer that was seen attends from one text to another.")
    lengths: dict[str, int] = {}
    for sight, (_, role) in zip(sights, roles, strict=True):
        lengths[role] = max(lengths.get(role, 0), sight.layer.sizes.keys - len(sight.extra_keys))
    texts = _Texts(given, lengths)
    layers = tuple(
        _named(sight, query_role, key_role, texts) for sight, (query_role, key_role) in zip(sights, roles, strict=True)
    )
    return layers, texts.found


def _named(sight: Sight, query_role: str, key_role: str, texts: "_Texts") -> Layer:
    layer, sizes = sight.layer, sight.layer.sizes
    keys = sizes.keys - len(sight.extra_keys)
    key_text = texts.name(key_role, keys, layer)
    if query_role == key_role and sizes.queries <= keys:
        query_text = key_text
    else:
        query_text = texts.name(query_role, sizes.queries, layer, last=True)
    if sight.extra_keys:
        key_text = texts.extended(key_text, sight.extra_keys)
    return replace(layer, query_text=query_text, key_text=key_text)


@dataclass
class _Texts:
    """The texts of a recording as layers ask for them."""

    given: Mapping[str, list[list[str]] | None]
    lengths: Mapping[str, int]
    found: dict[str, list[list[str]]] = field(default_factory=dict)

    def name(self, role: str, length: int, layer: Layer, *, last: bool = False) -> str:
        """The name of the text of ``length`` tokens; ``last``: the last ones of a longer text will do."""
        given = self.given.get(role)
        whole = self.lengths.get(role, length) if given is None else len(given[0])
        if given is None:
            start = whole - length if last and whole > length else 0
            tokens = [[str(place) for place in range(start, start + length)]] * layer.sizes.batch
        else:
            tokens = self._checked(role, given, length, layer, last=last)
        name = role
        if last and whole > length:
            name = f"{role}, last {length}"
        return self._kept(name, tokens)

    def extended(self, name: str, extra: tuple[str, ...]) -> str:
        """A text with names of keys that belong to no token after it."""
        return self._kept(f"{name} {' '.join(extra)}", [[*tokens, *extra] for tokens in self.found[name]])

    def _kept(self, name: str, tokens: list[list[str]]) -> str:
        if self.found.setdefault(name, tokens) != tokens:
            name = f"{name} ({len(tokens)} x {len(tokens[0]) if tokens else 0})"
            self.found[name] = tokens
        return name

    def _checked(self, role: str, given: list[list[str]], length: int, layer: Layer, *, last: bool) -> list[list[str]]:
        argument = "source" if role == "source" else "tokens"
        where = f"layer {layer.index} ({layer.name or 'the model itself'})"
        if len(given) != layer.sizes.batch:
            raise ObservationError(
                f"{argument} has {len(given)} sequences, but {where} saw a batch of {layer.sizes.batch}: "
                "give one list of tokens for each sequence."
            )
        for number, tokens in enumerate(given):
            if len(tokens) != length and not (last and len(tokens) > length):
                hint = " (the tokens of an encoder go into source=)" if argument == "tokens" else ""
                raise ObservationError(
                    f"{argument} has {len(tokens)} tokens in sequence {number}, but {where} has {layer.sizes.queries} "
                    f"queries and {layer.sizes.keys} keys: give one token for each position, padding included{hint}, "
                    "or observe only the layers= that these tokens belong to."
                )
        return [tokens[len(tokens) - length :] for tokens in given] if last else given


def _roles(sights: Sequence[Sight], *, two: bool) -> list[tuple[str, str]]:
    """The text of the queries and the text of the keys of each layer."""
    crossing = [
        crosses(sight.layer.name, sight.layer.host, sight.layer.sizes, sight.extra_keys, said=sight.cross, two=two)
        for sight in sights
    ]
    blocks = {_block(sight.layer.name) for sight, cross in zip(sights, crossing, strict=True) if cross}
    sides = [side_of(sight.layer.name) for sight in sights]
    lengths = {sight.layer.sizes.keys for sight in sights}
    if not any(crossing) and not (two or (len(lengths) > 1 and {"source", "target"} <= set(sides))):
        return [("text", "text")] * len(sights)
    found = []
    for sight, cross, side in zip(sights, crossing, sides, strict=True):
        if cross:
            found.append(("target", "source"))
        elif side is None or _block(sight.layer.name) in blocks:
            found.append(("target", "target"))
        else:
            found.append((side, side))
    return found


def crosses(name: str, host: str, sizes: Sizes, extra_keys: tuple[str, ...], *, said: bool | None, two: bool) -> bool:
    """Whether a layer attends to another text than its own.

    Args:
        name: path of its module.
        host: who computed it.
        sizes: of the attention.
        extra_keys: names of keys that belong to no token.
        said: what the host said about it.
        two: whether the user says that there are two texts.
    """
    if said is not None:
        return said
    if _SELF.search(name):
        return False
    if _CROSS.search(name):
        return True
    keys = sizes.keys - len(extra_keys)
    if sizes.queries != keys:
        # over a cache there are more keys than queries
        return sizes.queries > keys or (two and host == "nn.MultiheadAttention")
    return two and host == "nn.MultiheadAttention"


def _block(name: str) -> str:
    """Path of the block that a module is in: up to the first number."""
    found = re.match(r"(?:[^.]*\.)*?\d+(?=\.|$)", name)
    return found.group() if found else name.rpartition(".")[0]


def side_of(name: str) -> str | None:
    """Which of two texts a module works on, as its path says: ``source``, ``target`` or None."""
    found = _SIDE.search(name)
    return None if found is None else {"encoder": "source", "decoder": "target"}[found.group(1).lower()]
