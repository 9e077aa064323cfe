"""Which layers, heads and queries are observed."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from multihead.conventions import checked_indices, in_words, nearest
from multihead.counting import whole, whole_numbers

LayerChoice = int | str
"""A layer's number in the order of the run, or a pattern of its module's path."""

HeadChoice = (
    Sequence[int] | Mapping[int, Sequence[int]] | Mapping[str, Sequence[int]] | Mapping[LayerChoice, Sequence[int]]
)
"""Heads for every layer, or for each layer that is named."""


class Selection:
    """What a user asked to see, in the words they used.

    Args:
        layers: numbers of layers, or patterns of module paths (:mod:`fnmatch`; a pattern that matches a module means
            every attention inside it); None: all.
        heads: head numbers for every layer; or ``{layer: heads}``, which also chooses the layers unless ``layers``
            does; None: all.
        queries: query positions; None: all.

    Raises:
        ValueError: a number is negative, something is named twice or contradicts itself, or no layer is named.
        TypeError: something is neither a number nor a pattern.
    """

    def __init__(
        self,
        layers: LayerChoice | Sequence[LayerChoice] | None = None,
        heads: HeadChoice | None = None,
        queries: Sequence[int] | None = None,
    ) -> None:
        self.layers = None if layers is None else _choices(layers)
        self.by_layer: dict[LayerChoice, tuple[int, ...]] | None = None
        self.heads: tuple[int, ...] | None = None
        if isinstance(heads, Mapping):
            self.by_layer = {_choice(layer): _numbers("heads", chosen) for layer, chosen in heads.items()}
        elif heads is not None:
            self.heads = _numbers("heads", heads)
        if self.by_layer is not None and self.layers is None:
            self.layers = tuple(self.by_layer)
        if self.layers is not None:
            _check_layers(self.layers, self.by_layer or {})
        self.queries = None if queries is None else tuple(sorted(_numbers("queries", queries)))

    def wants(self, index: int, name: str) -> bool:
        """Whether the layer with this number and path was chosen."""
        return self.layers is None or any(_means(layer, index, name) for layer in self.layers)

    def heads_of(self, index: int, name: str, count: int) -> tuple[int, ...]:
        """The chosen heads of a layer that has ``count``.

        Raises:
            ValueError: one is out of range.
        """
        chosen = self.heads
        if self.by_layer is not None:
            layer = self._said_by(index, name)
            chosen = None if layer is None else self.by_layer[layer]
        return tuple(range(count)) if chosen is None else checked_indices("heads", chosen, count)

    def _said_by(self, index: int, name: str) -> LayerChoice | None:
        """Which entry of ``{layer: heads}`` says the heads of a layer: the first that means it."""
        return next((layer for layer in self.by_layer or () if _means(layer, index, name)), None)

    def queries_of(self, count: int) -> tuple[int, ...] | None:
        """The chosen queries of a layer that has ``count``, ascending; None for all.

        Raises:
            ValueError: one is out of range.
        """
        return None if self.queries is None else checked_indices("queries", self.queries, count)

    def check(self, names: Sequence[str]) -> None:
        """Whether all that was chosen is among the layers that appeared, and says something about one of them.

        Raises:
            ValueError: a number is out of range, a pattern matches nothing, or heads were chosen for nothing; the
                message says what there is.
        """
        missing = [
            layer
            for layer in dict.fromkeys((*(self.layers or ()), *(self.by_layer or {})))
            if not any(_means(layer, index, name) for index, name in enumerate(names))
        ]
        numbers = [layer for layer in missing if isinstance(layer, int)]
        if numbers:
            there = f"{len(names)} attention layers, 0 to {len(names) - 1}" if len(names) > 1 else _few(names)
            raise ValueError(f"layers {in_words(numbers)} out of range: this model has {there}.")
        if missing:
            close = nearest(str(missing[0]), names) or list(names)[:5]
            raise ValueError(
                f"layers {missing[0]!r} matches no attention of this model: try {in_words(map(repr, close), 'or')}, "
                "a pattern such as '*.2.*', or a number."
            )
        used = {self._said_by(index, name) for index, name in enumerate(names) if self.wants(index, name)}
        unused = [layer for layer in self.by_layer or () if layer not in used]
        if unused:
            raise _for_nothing(unused[0])

    def words(self) -> dict[str, str]:
        """The selection as text, for a recording's provenance; nothing for what was not restricted."""
        heads = self.heads if self.by_layer is None else {layer: list(heads) for layer, heads in self.by_layer.items()}
        chosen = {"layers": self.layers, "heads": heads, "queries": self.queries}
        return {
            name: str(dict(value) if isinstance(value, dict) else list(value))
            for name, value in chosen.items()
            if value is not None
        }


def _few(names: Sequence[str]) -> str:
    return "one attention layer, 0" if names else "no attention layer"


def _means(choice: LayerChoice, index: int, name: str) -> bool:
    if isinstance(choice, int):
        return choice == index
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[: end + 1]), choice) for end in range(len(parts)))


def _choices(layers: LayerChoice | Sequence[LayerChoice]) -> tuple[LayerChoice, ...]:
    """Numbers and patterns; one by itself is a list of one."""
    if isinstance(layers, Mapping):
        raise TypeError(f"layers={layers!r} is no list of layers: heads={{layer: heads}} chooses both.")
    if isinstance(layers, str) or not isinstance(layers, Iterable) or getattr(layers, "ndim", 1) == 0:
        return (_choice(layers),)
    chosen = tuple(_choice(layer) for layer in layers)
    if not chosen:
        raise ValueError("layers=[] chooses nothing: name some, or leave layers out for all of them.")
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"layers {list(chosen)} names one twice.")
    return chosen


def _check_layers(layers: tuple[LayerChoice, ...], by_layer: Mapping[LayerChoice, object]) -> None:
    """Raise ``ValueError`` where nothing is chosen, or heads of layers that are not; patterns show only in the run."""
    if not layers:
        raise ValueError("heads={} chooses nothing: name some layers, or leave heads out for all of them.")
    if all(isinstance(layer, int) for layer in layers):
        left_out = [layer for layer in by_layer if isinstance(layer, int) and layer not in layers]
        if left_out:
            raise _for_nothing(left_out[0])


def _for_nothing(layer: LayerChoice) -> ValueError:
    return ValueError(
        f"heads of layer {layer!r} were chosen for nothing: layers= leaves it out, or an entry before it names it too. "
        "Add it to layers, or take its heads away."
    )


def _choice(layer: object) -> LayerChoice:
    if isinstance(layer, str):
        return layer
    try:
        number = whole("layers", layer)
    except TypeError:
        raise TypeError(f"layers={layer!r} is neither a layer's number nor a pattern of module paths.") from None
    if number < 0:
        raise ValueError(f"layers {number} is negative: layers count from 0 in the order of the run.")
    return number


def _numbers(name: str, values: Sequence[int]) -> tuple[int, ...]:
    numbers = whole_numbers(name, values)
    if any(number < 0 for number in numbers):
        raise ValueError(f"{name} {in_words(n for n in numbers if n < 0)} out of range: {name} count from 0.")
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"{name} {list(numbers)} names one twice.")
    return numbers
