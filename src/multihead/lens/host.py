"""What an adapter understood of one attention that a host computed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multihead.core import AttentionCall
from multihead.errors import UnsupportedAttentionError
from multihead.masks import Mask

Finish = Callable[[Tensor, Tensor | None], Tensor]
"""What a host does after Σ P v: (B, H, r, Dv) of all heads and the r query indices (None: all) to (B, r, ...)."""


@dataclass(frozen=True)
class HostOutput:
    """The host's own output, with which Σ P v is compared."""

    tensor: Tensor
    """(B, H, Lq, Dv) without ``finish``, (B, Lq, ...) with it."""
    finish: Finish | None = None
    scores_dtype: torch.dtype = torch.float32
    """The type to which the host rounds its scores: it decides how exactly the two can agree."""
    rows: Tensor | None = None
    """(B, Lq), True at queries whose output means something; None: all."""


@dataclass(frozen=True)
class HostAttention:
    """One attention of a host."""

    host: str
    call: AttentionCall
    output: HostOutput | str
    """What to compare with, or why that is not possible."""
    cross: bool | None = None
    """Whether the keys are another text's than the queries'; None: unknown."""
    extra_keys: tuple[str, ...] = ()
    """Names of keys after the last token that belong to no token."""


def plain(tensor: Tensor, name: str) -> Tensor:
    """A tensor that can be measured, detached.

    Raises:
        UnsupportedAttentionError: it cannot; the message says why.
    """
    reason = None
    if tensor.is_nested:
        reason = "a nested tensor; pad the sequences and pass a mask"
    elif tensor.layout != torch.strided:
        reason = "a sparse tensor"
    elif tensor.is_meta:
        reason = "on the meta device, where nothing is computed"
    elif torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        reason = "inside torch.func or torch.vmap; call the model on a whole batch instead"
    elif type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        reason = f"a {type(tensor).__name__}, which holds no plain numbers"
    elif torch.jit.is_tracing():
        reason = "being traced; observe the model before or after tracing"
    elif not tensor.is_floating_point():
        reason = f"of {tensor.dtype}, not of a floating-point type"
    if reason is not None:
        raise UnsupportedAttentionError(f"its {name} is {reason}")
    return tensor.detach().as_subclass(Tensor)


def call_of(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Mask | None = None, bias: Tensor | None = None, **rest: Any
) -> AttentionCall:
    """An :class:`AttentionCall` of a host's tensors.

    Raises:
        UnsupportedAttentionError: they do not fit together; the message says which and how.
    """
    try:
        return AttentionCall(q, k, v, mask, bias, **rest)
    except (ValueError, TypeError) as error:
        raise UnsupportedAttentionError(str(error).rstrip(".")) from error


DROPOUT = "dropout was on, so the host's output is not Σ P v: observe the model after model.eval()"
