"""One attention computation: the narrow waist between those who ask for attention and those who compute it."""

import math
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from multihead.biases import Bias
from multihead.conventions import checked_number, default_scale, divisors, in_words, kind_of, shape_of
from multihead.masks import Mask, Sizes, dense


@dataclass(frozen=True, eq=False, slots=True)
class AttentionCall:
    r"""Queries, keys, values and all that decides which weights they give.

    .. math:: O = \mathrm{softmax}(\mathrm{cap}(q k^\top \cdot scale) + bias + mask)\, v

    (Vaswani et al. 2017, equation 1; softcap: Gemma 2, section 2; sinks: gpt-oss.)

    Args:
        q: queries, (B, H, Lq, D).
        k: keys, (B, Hkv, Lk, D); H is a multiple of Hkv.
        v: values, (B, Hkv, Lk, Dv).
        mask: what a query may see; None: everything.
        bias: added to the scores: a tensor that broadcasts to (B, H, Lq, Lk), or an object of :mod:`multihead.biases`.
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
    bias: Float[Tensor, "..."] | Bias | None = None
    scale: float | None = None
    softcap: float | None = None
    sinks: Float[Tensor, " head"] | None = None
    dropout: float = 0.0
    sizes: Sizes = field(init=False, repr=False)
    """Batch, heads, queries and keys."""

    def __post_init__(self) -> None:
        sizes = _sizes_of(self.q, self.k, self.v)
        if sizes is None:
            _say_what_does_not_fit(self.q, self.k, self.v)
            batch, heads, queries, _ = self.q.shape
            sizes = Sizes(batch, heads, queries, self.k.shape[2])
        object.__setattr__(self, "sizes", sizes)
        if self.mask is not None:
            if not isinstance(self.mask, Mask):
                raise TypeError(f"mask is {kind_of(self.mask)}, expected a mask of multihead.masks.")
            self.mask.check(sizes)
            _check_place("mask", self.mask, self.q.device)
        if self.bias is None:
            pass
        elif isinstance(self.bias, Bias):
            self.bias.check(sizes)
            _check_place("bias", self.bias, self.q.device)
        else:
            _check_bias(self.bias, sizes, self.q)
            if self.bias.ndim < 4:
                object.__setattr__(self, "bias", self.bias[(None,) * (4 - self.bias.ndim)])
        check_scores(self.scale, self.softcap, self.dropout)
        if self.scale is None:
            object.__setattr__(self, "scale", default_scale(self.q.shape[-1]))
        if self.sinks is not None:
            _check_sinks(self.sinks, sizes, self.q)

    @property
    def dense_bias(self) -> Float[Tensor, "batch_or_1 head_or_1 query_or_1 key_or_1"] | None:
        """The bias as one tensor.

        Memory: O(Lq · Lk) for an object.
        """
        return self.bias.dense(self.sizes) if isinstance(self.bias, Bias) else self.bias

    @property
    def bias_tensors(self) -> tuple[Tensor, ...]:
        """The tensors through which a bias may learn."""
        if self.bias is None:
            return ()
        return tuple(self.bias.tensors()) if isinstance(self.bias, Bias) else (self.bias,)

    @property
    def learns(self) -> bool:
        """Whether a gradient is wanted of any of its tensors."""
        tensors = (self.q, self.k, self.v, *self.bias_tensors, *(() if self.sinks is None else (self.sinks,)))
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)

    def over(
        self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, bias_tensors: tuple[Tensor, ...]
    ) -> "AttentionCall":
        """The same call of other tensors; those of the bias come in the order of ``bias_tensors``."""
        bias = self.bias.over(iter(bias_tensors)) if isinstance(self.bias, Bias) else next(iter(bias_tensors), None)
        return replace(self, q=q, k=k, v=v, sinks=sinks, bias=bias)

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
    raise TypeError(f"mask is {kind_of(mask)}, expected a mask of multihead.masks, a boolean tensor or None.")


def autocasts(device: torch.device) -> bool:
    """Whether autocast is on for a device; there are devices, such as meta, that know no autocast."""
    # asked at every call, and nearly always answered by the first
    return torch._C._is_any_autocast_enabled() and device.type != "meta" and torch.is_autocast_enabled(device.type)


def as_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors in the type to which autocast, where it is on, turns them before attention."""
    device = tensors[0].device
    if not autocasts(device):
        return tensors
    dtype = torch.get_autocast_dtype(device.type)
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors)


def check_scores(scale: float | None, softcap: float | None, dropout: float) -> None:
    """Raise unless these numbers can shape scores and weights: what a call and a layer both ask.

    Raises:
        TypeError: one is no number.
        ValueError: one is out of its range; the message says which.
    """
    if scale is not None:
        checked_number("scale", scale)
        if not -math.inf < scale < math.inf:
            raise ValueError(f"scale={scale} is no finite number.")
    if softcap is not None:
        checked_number("softcap", softcap)
        if not 0 < softcap < math.inf:
            raise ValueError(f"softcap={softcap} is no positive number: scores stay within -softcap and softcap.")
    checked_number("dropout", dropout)
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout={dropout} is no probability below 1: 0 drops nothing.")


def _sizes_of(q: Tensor, k: Tensor, v: Tensor) -> Sizes | None:
    """The sizes of three tensors that belong together, in as few operations as can be: every call of a layer asks.

    None where they may not belong together.
    """
    if not (isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor)):
        return None
    if q.is_nested or k.is_nested or v.is_nested or not q.ndim == k.ndim == v.ndim == 4:
        return None
    (batch, heads, queries, dim), (k_batch, kv_heads, keys, k_dim) = q.shape, k.shape
    v_batch, v_heads, values, _ = v.shape
    fits = (
        batch == k_batch == v_batch
        and kv_heads == v_heads
        and keys == values
        and dim == k_dim
        and kv_heads
        and not heads % kv_heads
        and q.dtype == k.dtype == v.dtype
        and q.device == k.device == v.device
        and q.is_floating_point()
    )
    return Sizes(batch, heads, queries, keys) if fits else None


def _say_what_does_not_fit(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is {kind_of(tensor)}, expected a tensor: torch.as_tensor makes one.")
        if tensor.is_nested or tensor.ndim != 4:
            came = "a nested tensor" if tensor.is_nested else f"shape {shape_of(tensor)}"
            raise ValueError(f"{name} has {came}, expected four axes (batch, heads, tokens, dim).")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} has dtype {tensor.dtype}, expected a floating-point type.")
        if tensor.dtype != q.dtype:
            raise TypeError(f"{name} has dtype {tensor.dtype} but q has {q.dtype}: convert one with .to().")
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


def _check_place(name: str, holder: Mask | Bias, device: torch.device) -> None:
    for tensor in holder.tensors():
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device} but q is on {device}: move it with .to({str(device)!r}).")


def _check_sinks(sinks: Tensor, sizes: Sizes, q: Tensor) -> None:
    if not isinstance(sinks, Tensor) or not sinks.is_floating_point():
        came = f"have dtype {sinks.dtype}" if isinstance(sinks, Tensor) else f"are {kind_of(sinks)}"
        raise TypeError(f"sinks {came}, expected a floating-point tensor of {sizes.heads} scores.")
    if sinks.shape != (sizes.heads,):
        raise ValueError(f"sinks have shape {shape_of(sinks)}, expected ({sizes.heads},): one learned score a head.")
    if sinks.device != q.device:
        raise ValueError(f"sinks are on {sinks.device} but q is on {q.device}: move one with .to().")


def _check_bias(bias: Tensor, sizes: Sizes, q: Tensor) -> None:
    target = (sizes.batch, sizes.heads, sizes.queries, sizes.keys)
    if not isinstance(bias, Tensor):
        raise TypeError(f"bias is {kind_of(bias)}, expected a tensor or an object of multihead.biases.")
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
