"""Which tokens of a batch are real, as the batch's own arguments say it, and which of its texts a layer reads."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from multihead.lens.host import HostAttention, HostOutput
from multihead.lens.texts import crosses, side_of
from multihead.recording.selection import hidden_as_padding

_TARGET = ("decoder_attention_mask", "target_valid", "tgt_key_padding_mask", "valid")
_SOURCE = ("encoder_attention_mask", "source_valid", "context_valid", "memory_key_padding_mask")
_TWO = ("tgt", "target", "context", "memory", "encoder_hidden_states", *_TARGET[:3], *_SOURCE)
"""Arguments that only a model of two texts is given."""


@dataclass(frozen=True)
class RealTokens:
    """What one batch says about its texts: for ``source`` and ``target`` (batch, tokens), True at real tokens.

    A model of one text has a target only.
    """

    texts: Mapping[str, Tensor] = field(default_factory=dict)
    two: bool = False
    """Whether there is a source beside the target."""

    @classmethod
    def of(cls, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "RealTokens":
        """As the arguments of a call of ``model`` say, by the names that transformers, torch and multihead use."""
        given = _named(model, args, kwargs)
        transformers = any(_is_encoder_decoder(module) for module in model.modules())
        two = transformers or any(isinstance(given.get(name), Tensor) for name in _TWO)
        homes = dict.fromkeys(_TARGET, "target") | dict.fromkeys(_SOURCE, "source")
        homes |= {"attention_mask": "source" if transformers else "target"}
        homes |= {"src_key_padding_mask": "source" if two else "target"}
        texts: dict[str, Tensor] = {}
        for name, text in homes.items():
            real = _real(given.get(name), hiding=name.endswith("key_padding_mask"))
            if real is not None:
                texts.setdefault(text, real)
        labels = given.get("labels")
        if transformers and given.get("decoder_input_ids") is None and isinstance(labels, Tensor) and labels.ndim == 2:
            # the model makes its decoder's input of them; what it need not predict is padding
            texts.setdefault("target", labels != -100)
        return cls(texts, two)

    def roles(self, attention: HostAttention, name: str) -> tuple[str, str, bool]:
        """The text of a layer's queries, that of its keys, and whether these are two texts."""
        sizes, extra = attention.call.sizes, attention.extra_keys
        if crosses(name, attention.host, sizes, extra, said=attention.cross, two=self.two):
            return "target", "source", True
        text = (side_of(name) if self.two else None) or "target"
        return text, text, False

    def queries(self, attention: HostAttention, name: str) -> Tensor:
        """(B, Lq), True at queries that are real tokens; they may still see nothing."""
        sizes, device = attention.call.sizes, attention.call.q.device
        query_text, _, cross = self.roles(attention, name)
        real = torch.ones(sizes.batch, sizes.queries, dtype=torch.bool, device=device)
        keys = sizes.keys - len(attention.extra_keys)
        said = self.texts.get(query_text)
        if said is None and not cross:
            said = hidden_as_padding(attention.call.mask)
            said = None if said is None else said[:, :keys]
        if said is not None and said.shape[0] in (1, sizes.batch):
            length = said.shape[1]
            if length == sizes.queries or (length == keys and sizes.queries < keys and not cross):
                real &= said[:, length - sizes.queries :].to(device)
        if isinstance(attention.output, HostOutput) and attention.output.rows is not None:
            real &= attention.output.rows
        return real

    def first_keys(self, attention: HostAttention, name: str) -> list[int]:
        """The first real key of each sequence, 0 where there is none."""
        sizes = attention.call.sizes
        _, key_text, _ = self.roles(attention, name)
        lengths = (sizes.keys, sizes.keys - len(attention.extra_keys))
        for said in (self.texts.get(key_text), hidden_as_padding(attention.call.mask)):
            if said is not None and said.shape[0] in (1, sizes.batch) and said.shape[1] in lengths and said.shape[1]:
                return said.int().argmax(1).expand(sizes.batch).tolist()
        return [0] * sizes.batch


def _is_encoder_decoder(module: nn.Module) -> bool:
    """Whether a module is a model of transformers that reads two texts."""
    if not getattr(getattr(module, "config", None), "is_encoder_decoder", False):
        return False
    return "decoder_input_ids" in inspect.signature(module.forward).parameters


def _named(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, as far as that can be said."""
    try:
        return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments) | dict(kwargs)
    except (TypeError, ValueError):
        return dict(kwargs)


def _real(said: Any, *, hiding: bool) -> Tensor | None:
    """(batch, tokens), True at real tokens; None for what says no such thing."""
    if not isinstance(said, Tensor) or said.ndim != 2:
        return None
    if not hiding:
        return said != 0
    return said == 0 if said.is_floating_point() else ~said.bool()
