"""One attention computation: the narrow waist between those who ask for attention and those who compute it."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from multihead.conventions import default_scale, divisors, in_words, shape_of
from multihead.masks import Mask, Sizes, dense


@dataclass(frozen=True, eq=False)
class AttentionCall:
    r"""Queries, keys, values and all that decides which weights they give.

    .. math:: O = \mathrm{softmax}(\mathrm{cap}(q k^\top \cdot scale) + bias + mask)\, v

    (Vaswani et al. 2017, equation 1; softcap: Gemma 2, section 2; sinks: gpt-oss.)

    Args:
        q: queries, (B, H, Lq, D).
        k: keys, (B, Hkv, Lk, D); H is a multiple of Hkv.
        v: values, (B, Hkv, Lk, Dv).
        mask: what a query may see; None: everything.
        bias: added to the scores, broadcastable to (B, H, Lq, Lk).
        scale: factor of the scores; None: 1/√D.
        softcap: c > 0 turns a score s into c·tanh(s/c) before bias and mask.
        sinks: (H,) learned scores of one more key per head that has no value: it takes probability and gives nothing.
        dropout: probability with which each weight is dropped from the output, the others growing by 1/(1 - dropout).
            Statistics and weights are always those before dropout.

    Raises:
        ValueError: shapes, devices or numbers that do not belong together.
        TypeError: dtypes that do not belong together.
    """

    q: Float[Tensor, "batch head query dim"]
    k: Float[Tensor, "batch kv_head key dim"]
    v: Float[Tensor, "batch kv_head key value_dim"]
    mask: Mask | None = None
    bias: Float[Tensor, "..."] | None = None
    scale: float | None = None
    softcap: float | None = None
    sinks: Float[Tensor, " head"] | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _check_tensors(self.q, self.k, self.v)
        if self.mask is not None:
            self.mask.check(self.sizes)
            elsewhere = {tensor.device for tensor in self.mask.tensors()} - {self.q.device}
            if elsewhere:
                raise ValueError(
                    f"mask is on {in_words(elsewhere)} but q is on {self.q.device}: move it with mask.to(q.device)."
                )
        if self.bias is not None:
            _check_bias(self.bias, self.sizes, self.q)
            object.__setattr__(self, "bias", self.bias[(None,) * (4 - self.bias.ndim)])
        if self.scale is None:
            object.__setattr__(self, "scale", default_scale(self.q.shape[-1]))
        elif not math.isfinite(self.scale):
            raise ValueError(f"scale={self.scale} is no finite number.")
        if self.softcap is not None and not (math.isfinite(self.softcap) and self.softcap > 0):
            raise ValueError(f"softcap={self.softcap} is no positive number: scores stay within -softcap and softcap.")
        if self.sinks is not None and self.sinks.shape != (self.sizes.heads,):
            raise ValueError(
                f"sinks have shape {shape_of(self.sinks)}, expected ({self.sizes.heads},): one learned score a head."
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout={self.dropout} is no probability below 1.")

    @property
    def sizes(self) -> Sizes:
        """Batch, heads, queries and keys."""
        batch, heads, queries, _ = self.q.shape
        return Sizes(batch, heads, queries, self.k.shape[2])

    @property
    def factor(self) -> float:
        """The scale in force."""
        return default_scale(self.q.shape[-1]) if self.scale is None else self.scale

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.q.shape[1] // self.k.shape[1] if self.k.shape[1] else 1


def as_mask(mask: "Mask | Tensor | None") -> Mask | None:
    """A mask as people give it: an object of :mod:`multihead.masks`, a boolean tensor (True may attend) or None."""
    if mask is None or isinstance(mask, Mask):
        return mask
    if isinstance(mask, Tensor):
        return dense(mask)
    raise TypeError(f"mask is a {type(mask).__name__}, expected a mask of multihead.masks, a boolean tensor or None.")


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.is_nested or tensor.ndim != 4:
            came = "a nested tensor" if tensor.is_nested else f"shape {shape_of(tensor)}"
            raise ValueError(f"{name} has {came}, expected four axes (batch, heads, tokens, dim).")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} has dtype {tensor.dtype}, expected a floating-point type.")
        if tensor.dtype != q.dtype:
            raise TypeError(
                f"{name} has dtype {tensor.dtype} but q has {q.dtype}: convert one, or run under torch.autocast."
            )
        if tensor.device != q.device:
            raise ValueError(f"{name} is on {tensor.device} but q is on {q.device}: move one with .to().")
        if tensor.shape[0] != q.shape[0]:
            raise ValueError(
                f"{name} has batch {tensor.shape[0]} but q has {q.shape[0]}: {shape_of(tensor)} and {shape_of(q)}."
            )
    if k.shape[:3] != v.shape[:3]:
        raise ValueError(f"k {shape_of(k)} and v {shape_of(v)} differ in heads or tokens: each key needs its value.")
    if q.shape[3] != k.shape[3]:
        raise ValueError(
            f"q {shape_of(q)} and k {shape_of(k)} differ in their last axis: a score is their inner product."
        )
    check_heads(q.shape[1], k.shape[1])


def check_heads(num_heads: int, num_kv_heads: int) -> None:
    """Raise ``ValueError`` unless each key/value head serves equally many query heads."""
    if num_heads and (num_kv_heads < 1 or num_heads % num_kv_heads):
        raise ValueError(
            f"num_heads={num_heads} is not a multiple of num_kv_heads={num_kv_heads}: each key/value head must "
            f"serve equally many query heads; try {in_words(divisors(num_heads), 'or')}."
        )


def _check_bias(bias: Tensor, sizes: Sizes, q: Tensor) -> None:
    target = (sizes.batch, sizes.heads, sizes.queries, sizes.keys)
    if not bias.is_floating_point():
        raise TypeError(
            f"bias has dtype {bias.dtype}, expected a floating-point type: pass a boolean tensor as mask instead."
        )
    if bias.device != q.device:
        raise ValueError(f"bias is on {bias.device} but q is on {q.device}: move one with .to().")
    padded = (1,) * (4 - bias.ndim) + tuple(bias.shape)
    if bias.ndim > 4 or any(size not in (1, wanted) for size, wanted in zip(padded, target, strict=True)):
        raise ValueError(
            f"bias of shape {shape_of(bias)} does not broadcast to (batch, heads, queries, keys) = {target}."
        )


def nonfinite(tensor: Tensor) -> bool:
    """Whether a tensor holds NaN or inf (or its sum overflows float32): one reduction, no copy."""
    return not bool(torch.isfinite(tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))))
