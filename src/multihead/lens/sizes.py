"""The sizes of a model's attentions, as it shows them on a short text."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from multihead.conventions import checked_count
from multihead.core import Statistics
from multihead.errors import ObservationError
from multihead.lens import batches
from multihead.lens.host import HostAttention
from multihead.lens.masks_found import MaskFinder
from multihead.lens.measuring import Wanted
from multihead.lens.observe import refuse_unobservable
from multihead.lens.patching import watching
from multihead.lens.profile import evaluating
from multihead.lens.real_tokens import RealTokens
from multihead.lens.selection import Selection
from multihead.lens.watch import Run, Watch
from multihead.masks import And, Causal, Mask

SHORT = 5
"""Tokens of the text that a model reads to show its attentions."""


@dataclass(frozen=True, kw_only=True)
class AttentionSizes:
    """The sizes of one attention that do not depend on the text.

    Args:
        heads: query heads, H.
        kv_heads: key/value heads, Hkv; None: as many as ``heads``.
        head_dim: D.
        value_dim: Dv; None: D.
        causal: whether a query sees only keys up to its own position.
        bias: whether a dense bias, (H, Lq, Lk), is added to the scores.
        query_text: ``"target"``, or ``"source"`` in an encoder beside a decoder.
        key_text: likewise, of the keys.
        dtype: of queries and keys.
        name: path of its module.

    Raises:
        ValueError, TypeError: numbers that are no sizes.
    """

    heads: int
    head_dim: int
    kv_heads: int | None = None
    value_dim: int | None = None
    causal: bool = False
    bias: bool = False
    query_text: str = "target"
    key_text: str = "target"
    dtype: torch.dtype = torch.float32
    name: str = ""

    def __post_init__(self) -> None:
        for name in ("heads", "head_dim", "kv_heads", "value_dim"):
            if getattr(self, name) is not None:
                checked_count(name, getattr(self, name))
        for name in ("query_text", "key_text"):
            if getattr(self, name) not in ("target", "source"):
                raise ValueError(f'{name}={getattr(self, name)!r} is neither "target" nor "source".')


def sizes_of(model: nn.Module, inputs: Any, device: torch.device) -> list[AttentionSizes]:
    """The attentions of a model, as a short text shows them."""
    refuse_unobservable(model)
    batch = _short_text(model) if inputs is None else inputs
    args, kwargs = batches.moved(batches.arguments(model, batch, 0), device)
    real = RealTokens.of(model, args, kwargs)
    found: list[AttentionSizes] = []

    def look(attention: HostAttention, wanted: Wanted, finder: MaskFinder) -> None:  # noqa: ARG001
        call = attention.call
        query_text, key_text, _ = real.roles(attention, wanted.name)
        found.append(
            AttentionSizes(
                heads=call.sizes.heads,
                kv_heads=call.k.shape[1],
                head_dim=call.q.shape[-1],
                value_dim=call.v.shape[-1],
                causal=_is_causal(call.mask),
                bias=call.bias is not None,
                query_text=query_text,
                key_text=key_text,
                dtype=call.q.dtype,
                name=wanted.name,
            )
        )

    def finished(run: Run) -> bool:  # noqa: ARG001
        return True

    watch = Watch(
        model,
        Selection(),
        statistics=Statistics(),
        qk=False,
        verify=False,
        skip=True,
        finished=finished,
        look=look,
    )
    with watching(model, watch), evaluating(model), torch.no_grad():
        model(*args, **kwargs)
    if not found:
        raise ObservationError(f"nothing was seen of {type(model).__name__}; multihead.observe says why.")
    return found


def _short_text(model: nn.Module) -> dict[str, Tensor]:
    """A few token ids, under the names by which transformers and multihead take them."""
    parameters = inspect.signature(model.forward).parameters
    ids = torch.ones(1, SHORT, dtype=torch.int64)
    if "input_ids" in parameters:
        return {"input_ids": ids, **({"decoder_input_ids": ids} if "decoder_input_ids" in parameters else {})}
    if "tokens" in parameters:
        return {"tokens": ids}
    if {"source", "target"} <= set(parameters):
        return {"source": ids, "target": ids}
    raise ValueError(
        f"{type(model).__name__} does not say that it reads token ids: pass inputs= that it can be run on, a "
        "short text or one image, as a dict of arguments, a tensor or a tuple."
    )


def _is_causal(mask: Mask | None) -> bool:
    match mask:
        case Causal():
            return True
        case And(left, right):
            return _is_causal(left) or _is_causal(right)
        case _:
            return False
