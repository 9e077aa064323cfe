"""What was seen: the narrow waist between those who observe attention and those who show it."""

import os  # noqa: TC003
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from jaxtyping import Float
from torch import Tensor

from multihead.conventions import in_words
from multihead.counting import whole, whole_numbers
from multihead.errors import RecordingError, SourceError
from multihead.recording.given import Weights, layers_of
from multihead.recording.layer import Layer
from multihead.recording.outline import RecordingOutline, check_item, counted, numbers
from multihead.recording.query import Link, ends_of, strongest, token_at, weights
from multihead.recording.selection import layer_of_sequence
from multihead.recording.words import Tokens, occurrences, shown, suggestions

if TYPE_CHECKING:
    import matplotlib.figure

    from multihead.recording.traits import HeadTraits

__all__ = ["Layer", "Link", "Recording"]


@dataclass(frozen=True, eq=False)
class Recording(RecordingOutline):
    """The attention of one run of a model, with the tokens it was about and where it comes from.

    Args:
        layers: what was seen, in the order of the run.
        texts: for each text by name (``text``; or ``source`` and ``target``) one list of tokens for each sequence of
            the batch.
        provenance: text to text: model, versions, date, selection.

    Raises:
        ValueError: two layers have one index, or a text does not fit the layers over it.

    >>> import torch
    >>> from multihead import inspect
    >>> from multihead.masks import Sizes
    >>> q = torch.eye(3)[None, None] * 4
    >>> _, seen = inspect(q, q, q, scale=1.0)
    >>> sizes = Sizes(batch=1, heads=1, queries=3, keys=3)
    >>> kept = {"heads": (0,), "kv_heads": (0,), "q": q, "k": q, "statistics": seen}
    >>> layer = Layer(index=0, name="attn", host="multihead", sizes=sizes, **kept)
    >>> recording = Recording((layer,), {"text": [["they", "act", "now"]]}, {"model": "Toy"})
    >>> recording
    Recording of Toy: 1 layer × 1 head, 3 tokens
    >>> recording.rows(0, [1])
    tensor([[[1.1254e-07, 1.0000e+00, 1.1254e-07]]])
    >>> print(*recording.top("now", count=1))
    layer 0 head 0: now (2) → now (2)  1.000
    """

    layers: tuple[Layer, ...]
    texts: Mapping[str, Sequence[Sequence[str]]]
    provenance: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_weights(
        cls,
        weights: Weights,
        tokens: Tokens,
        *,
        key_tokens: Tokens | None = None,
        heads: Sequence[int] | None = None,
        layers: Sequence[int] | None = None,
        provenance: Mapping[str, str] | None = None,
    ) -> "Recording":
        """A recording of weights that someone already has: of a model's ``attentions``, of a file, of an experiment.

        Such a recording holds the weights themselves in place of queries and keys. All that asks for weights works, in
        Python, in the terminal and on the page; what needs scores (lse, masks) is not there.

        Args:
            weights: for each layer a tensor or array, (batch, heads, queries, keys), or (heads, queries, keys) of one
                sequence; None for a layer that has none, which keeps its number. Rows need not add up to 1: they may be
                averaged, pruned or dropped out.
            tokens: of the text, one for each position; a list for each sequence of a batch.
            key_tokens: of the text that is looked at, where that is another one: cross-attention.
            heads: numbers of the heads, the same for each layer, where ``weights`` has only some of the model's; the
                model is taken to have as many as the highest says. None: 0, 1, 2, ...
            layers: numbers of the layers, one for each entry of ``weights``; None: 0, 1, 2, ...
            provenance: text to text: model, versions, date.

        Returns:
            A recording with entropy (where each row adds up to 1 or 0) and received. Half precision is kept as float32;
            other tensors are not copied.

        Raises:
            ValueError: shapes do not fit the tokens, or numbers are no weights: NaN, below 0, above 1 + 10⁻³. The
                message says what to do.
            TypeError: what is no list of arrays of floating-point numbers, or no tokens.

        Memory: the weights, O(Lq · Lk) for each head, and once more those of one layer.

        >>> import torch
        >>> attentions = torch.tensor([[[0.9, 0.1, 0.0], [0.2, 0.3, 0.5], [0.0, 0.75, 0.25]]])
        >>> recording = Recording.from_weights([attentions], ["they", "act", "now"])
        >>> print(*recording.top("now", count=1))
        layer 0 head 0: now (2) → act (1)  0.750
        """
        found, texts = layers_of(weights, tokens, key_tokens, heads, layers)
        return cls(found, texts, {} if provenance is None else dict(provenance))

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __repr__(self) -> str:
        heads = sorted({len(layer.heads) for layer in self.layers})
        every = {layer.sizes.heads for layer in self.layers}
        words = (
            counted(heads[0], "head")
            if len(heads) == 1
            else f"{heads[0]} to {heads[-1]} heads"
            if heads
            else "no heads"
        )
        if len(heads) == len(every) == 1 and heads[0] not in every:
            words = f"{heads[0]} of {counted(max(every), 'head')}"
        model = shown(self.provenance.get("model", "an unnamed model"))
        return f"Recording of {model}: {counted(len(self.layers), 'layer')} × {words}, {self._lengths()}"

    def _lengths(self) -> str:
        if not self.texts:
            return counted(max((layer.sizes.keys for layer in self.layers), default=0), "key")
        words = []
        for name, sequences in self.texts.items():
            label = "" if len(self.texts) == 1 else f"{shown(name)} of "
            several = f"{len(sequences)} sequences of " if len(sequences) != 1 else ""
            words.append(f"{label}{several}{counted(max(map(len, sequences), default=0), 'token')}")
        return in_words(words)

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, object], dict[str, object]]:
        """What a notebook shows: the page, where it can."""
        from multihead.view.notebook import shown_in_notebook

        return shown_in_notebook(self)

    def layer(self, index: int) -> Layer:
        """The layer with this ``index``.

        Raises:
            RecordingError: there is none; the message names those there are.
            TypeError: ``index`` is no whole number.
        """
        index = whole("layer", index)
        for layer in self.layers:
            if layer.index == index:
                return layer
        raise RecordingError(
            f"layer {index} was not recorded: recorded are {numbers([layer.index for layer in self.layers])}."
        )

    def rows(
        self, layer: int, queries: Sequence[int], *, heads: Sequence[int] | None = None, item: int = 0
    ) -> Float[Tensor, "head row key"]:
        """Whole rows of weights: what each chosen query gives every key.

        Args:
            layer: the layer's ``index``.
            queries: the model's own query numbers.
            heads: the model's own head numbers; None: all that were recorded.
            item: the sequence in the batch.

        Returns:
            (heads, r, Lk), in float32 (float64 for float64 queries), recomputed from queries, keys and log-sum-exp:
            they are before dropout and sum to 1 less what went to sinks. Weights that were given come as they are.

        Raises:
            RecordingError: queries, keys or log-sum-exp were not kept, or not those of the chosen heads and queries.
            TypeError: queries or heads are no lists of numbers; a single one is a list too, ``[18]``.

        Memory: the answer and one tile.
        """
        return weights(self.layer(layer), queries, None, heads=heads, item=item)

    def columns(
        self, layer: int, keys: Sequence[int], *, heads: Sequence[int] | None = None, item: int = 0
    ) -> Float[Tensor, "head query column"]:
        """Whole columns of weights, (heads, Lq, c): what each recorded query gives these keys. See :meth:`rows`."""
        return weights(self.layer(layer), None, keys, heads=heads, item=item)

    def tile(
        self,
        layer: int,
        queries: slice | range,
        keys: slice | range,
        *,
        heads: Sequence[int] | None = None,
        item: int = 0,
    ) -> Float[Tensor, "head query key"]:
        """A rectangle of weights, (heads, queries, keys). See :meth:`rows`.

        A slice counts by the model's own numbers, as in Python; ``slice(None)`` is all that were recorded.

        Raises:
            TypeError: queries or keys are neither slice nor range.
        """
        chosen = self.layer(layer)
        asking = _range("queries", queries, chosen.sizes.queries)
        answering = _range("keys", keys, chosen.sizes.keys)
        return weights(chosen, None if queries == slice(None) else asking, answering, heads=heads, item=item)

    def positions(
        self, token: str | int, text: str | None = None, item: int = 0, *, occurrence: int | None = None
    ) -> tuple[int, ...]:
        """Where a token stands in its text, ascending.

        Args:
            token: as in the text, or without the tokenizer's marks (``making`` for ``▁making``), or a whole word whose
                pieces follow each other (``governments`` for ``govern``, ``##ments``); a number is a position.
            text: the text's name; may be left out where there is one.
            item: the sequence in the batch.
            occurrence: which of several, counting from 0; None: all of them.

        Raises:
            SourceError: it is not there; the message suggests tokens that look like it.
            TypeError: ``token`` is neither text nor a whole number.
        """
        tokens = self._tokens(text, item)
        if not isinstance(token, str):
            try:
                token = whole("token", token)
            except TypeError:
                raise TypeError(f"token={token!r} is neither a word nor a position.") from None
            if not 0 <= token < len(tokens):
                raise SourceError(
                    f"position {token} is not in the text: it has positions {numbers(range(len(tokens)))}."
                )
            return (token,)
        found = occurrences(tokens, token)
        if not found:
            near = suggestions(tokens, token)
            advice = f"did you mean {in_words(near, 'or')}?" if near else "a number names a position instead."
            raise SourceError(f"{shown(token)!r} is not among the {len(tokens)} tokens: {advice}")
        if occurrence is not None:
            if not 0 <= whole("occurrence", occurrence) < len(found):
                there = numbers(range(len(found)))
                raise SourceError(
                    f"{shown(token)!r} occurs {counted(len(found), 'time')}: occurrence is one of {there}."
                )
            found = [found[occurrence]]
        return tuple(sorted({position for places in found for position in places}))

    def top(
        self,
        token: str | int,
        *,
        text: str | None = None,
        count: int = 10,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        item: int = 0,
        direction: Literal["from", "to"] = "from",
        occurrence: int | None = None,
    ) -> list[Link]:
        """The strongest links of a token over all layers and heads: which head sends it where.

        Args:
            token: see :meth:`positions`.
            text: only layers that look from (or to) this text; None: every text that has the token.
            count: at most so many links, the strongest first.
            layers: by ``index``; None: all.
            heads: the model's own numbers, the same for each layer; None: all.
            item: the sequence in the batch.
            direction: ``from`` the token as a query, or ``to`` the token as a key.
            occurrence: which of several, counting from 0; None: all of them together.

        Raises:
            SourceError: the token is not there.
            RecordingError: what weights are recomputed from was not recorded.
            ValueError, TypeError: other arguments that mean nothing; the message says what to write.

        Memory: one head's weights from, or to, the token's positions.
        """
        if direction not in ("from", "to"):
            raise ValueError(
                f"direction={direction!r} is neither 'from' (the token as a query) nor 'to' (the token as a key)."
            )
        if whole("count", count) < 1:
            raise ValueError(f"count={count} asks for no link: it is at least 1.")
        check_item(item, self.batch)
        chosen = self.layers if layers is None else [self.layer(index) for index in whole_numbers("layers", layers)]
        heads = None if heads is None else whole_numbers("heads", heads)
        self._check_heads(heads, chosen)
        names = [layer.query_text if direction == "from" else layer.key_text for layer in chosen]
        found = self._find(
            token, [name for name in dict.fromkeys(names) if text in (None, name)], text, item, occurrence
        )
        ends = ends_of(chosen, found.get, lambda name: len(self._tokens(name, item)), direction=direction)
        return [self._link(*link, item=item) for link in strongest(ends, heads, item, count)]

    def traits(self, *, layers: Sequence[int] | None = None, item: int = 0, measure: bool = True) -> "list[HeadTraits]":
        """What each head does: how broadly, how far and at which tokens it looks, and its kind in a word.

        Args:
            layers: by ``index``; None: all.
            item: the sequence in the batch.
            measure: whether to measure what the recorded statistics do not say, by a pass over all pairs of a layer.
                Numbers that are neither recorded nor measured are None.

        Returns:
            One :class:`HeadTraits` for each layer and head, in order; printed, they are a table.

        Raises:
            RecordingError: a layer or the sequence is not there.

        Memory: linear in the tokens.
        """
        from multihead.recording.trait_sums import traits_of

        return traits_of(self, layers=layers, item=item, measure=measure)

    def _find(
        self, token: str | int, names: Sequence[str], text: str | None, item: int, occurrence: int | None
    ) -> dict[str, tuple[int, ...]]:
        """The token's positions in each of the named texts that has it."""
        found: dict[str, tuple[int, ...]] = {}
        failure: SourceError | None = None
        for name in names:
            try:
                found[name] = self.positions(token, name, item, occurrence=occurrence)
            except SourceError as error:
                failure = failure or error
        if not found:
            if failure is None:
                raise SourceError(
                    f"no layer looks at a text {text!r}: texts are {in_words(map(repr, self.texts), 'and')}."
                )
            raise failure
        return found

    def _check_heads(self, heads: Sequence[int] | None, layers: Sequence[Layer]) -> None:
        kept = {head for layer in layers for head in layer.heads}
        absent = sorted(set(heads or ()) - kept)
        if absent:
            raise RecordingError(f"head {numbers(absent)} was not recorded: recorded are {numbers(sorted(kept))}.")

    def _link(self, index: int, head: int, query: int, key: int, weight: float, *, item: int) -> Link:
        layer = self.layer(index)
        asking, answering = (
            self.texts[name][item] if name in self.texts else None for name in (layer.query_text, layer.key_text)
        )
        place = query if asking is None else layer.place_of_query(query, len(asking))
        return Link(index, head, query, key, token_at(asking, place), token_at(answering, key), weight)

    def _tokens(self, text: str | None, item: int) -> Sequence[str]:
        """The tokens of one sequence; where the recording holds none, as many empty ones as the layers have."""
        if text is None and len(self.texts) > 1:
            raise SourceError(f"there are several texts: say which, text={in_words(map(repr, self.texts), 'or')}.")
        if text is not None and text not in self.texts and self.texts:
            raise SourceError(f"there is no text {text!r}: texts are {in_words(map(repr, self.texts))}.")
        if not self.texts:
            check_item(item, self.batch)
            return [""] * max((layer.sizes.keys for layer in self.layers), default=0)
        sequences = self.texts[next(iter(self.texts)) if text is None else text]
        check_item(item, len(sequences))
        return sequences[item]

    def sequence(self, item: int) -> "Recording":
        """One sequence of the batch as a recording of its own; tensors are views.

        Raises:
            RecordingError: there is no such sequence, or layers and texts have different batches.
        """
        check_item(item, self.batch)
        batches = {layer.sizes.batch for layer in self.layers} | {len(sequences) for sequences in self.texts.values()}
        if batches == {1}:
            return self
        if len(batches) > 1:
            raise RecordingError(
                f"the batches differ, {numbers(sorted(batches))}: no sequence is the same in all layers."
            )
        texts = {name: [sequences[item]] for name, sequences in self.texts.items()}
        return Recording(tuple(layer_of_sequence(layer, item) for layer in self.layers), texts, self.provenance)

    def save(self, path: "str | os.PathLike[str]") -> None:
        """Write the recording as one safetensors file; :func:`multihead.load` opens it again, bit for bit the same.

        The file appears whole or not at all: an older one of this name stays until the new one is complete. A symbolic
        link stays, and the file that it leads to is written.

        Raises:
            RecordingError: the path cannot be written, or names a folder, a pipe or a device; or something cannot be
                stored. The message says what.
        """
        from multihead.recording.store import save

        save(self, path)

    def figure(
        self,
        kind: str | None = None,
        *,
        layer: int | None = None,
        heads: Sequence[int] | None = None,
        token: str | int | None = None,
        queries: Sequence[int] | None = None,
        keys: Sequence[int] | None = None,
        item: int = 0,
        scale: str | None = None,
        size: int | float | tuple[int | float, int | float] | None = None,
        dark: bool = False,
        title: str | None = None,
    ) -> "matplotlib.figure.Figure":
        """A figure for a paper: ``heads``, ``map``, ``text`` or ``links``; see :func:`multihead.view.figures.figure`.

        Raises:
            ImportError: matplotlib is missing.
            ValueError, TypeError, SourceError, RecordingError: as there.
        """
        from multihead.view.figures import figure

        return figure(
            self,
            kind,
            layer=layer,
            heads=heads,
            token=token,
            queries=queries,
            keys=keys,
            item=item,
            scale=scale,
            size=size,
            dark=dark,
            title=title,
        )


def _range(name: str, chosen: slice | range, size: int) -> range:
    if not isinstance(chosen, slice | range):
        raise TypeError(f"{name}={chosen!r} is neither slice nor range: say for example {name}=range(2, 5).")
    return chosen if isinstance(chosen, range) else range(*chosen.indices(size))
