"""Attention as functions: the output, and the output seen through."""

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from multihead.biases import Bias
from multihead.core import AttentionCall, Measurements, Statistics, as_autocast, as_mask
from multihead.core.statistics import check_statistics
from multihead.kernels import attend, attend_with_statistics
from multihead.masks import Mask


def attention(
    q: Float[Tensor, "batch head query dim"],
    k: Float[Tensor, "batch kv_head key dim"],
    v: Float[Tensor, "batch kv_head key value_dim"],
    *,
    mask: Mask | Bool[Tensor, "..."] | None = None,
    bias: Float[Tensor, "..."] | Bias | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " head"] | None = None,
) -> Float[Tensor, "batch head query value_dim"]:
    r"""Scaled dot-product attention (Vaswani et al. 2017, equation 1).

    .. math:: \mathrm{softmax}(\mathrm{cap}(q k^\top \cdot scale) + bias + mask)\, v

    Args:
        q: queries, (B, H, Lq, D).
        k: keys, (B, Hkv, Lk, D); query head h reads key/value head h // (H // Hkv).
        v: values, (B, Hkv, Lk, Dv).
        mask: what each query may see: an object of :mod:`multihead.masks`, or a boolean tensor, True where it may
            attend.
        bias: added to the scores: a tensor that broadcasts to (B, H, Lq, Lk), or an object of :mod:`multihead.biases`.
        scale: factor of the scores; None: 1/√D.
        softcap: c > 0 turns each score s into c·tanh(s/c).
        sinks: (H,) learned scores of one more key per head that has no value.

    Returns:
        (B, H, Lq, Dv). A query that sees no key gets zeros.

    Raises:
        ValueError, TypeError: tensors that do not belong together; the message says which and how.

    >>> import torch, multihead as mh
    >>> q, k, v = torch.zeros(3, 1, 2, 5, 4).unbind()
    >>> mh.attention(q, k, v, mask=mh.masks.causal()).shape
    torch.Size([1, 2, 5, 4])
    """
    return attend(_call(q, k, v, mask=as_mask(mask), bias=bias, scale=scale, softcap=softcap, sinks=sinks))


def inspect(
    q: Float[Tensor, "batch head query dim"],
    k: Float[Tensor, "batch kv_head key dim"],
    v: Float[Tensor, "batch kv_head key value_dim"],
    *,
    statistics: Statistics = Statistics(),  # noqa: B008
    mask: Mask | Bool[Tensor, "..."] | None = None,
    bias: Float[Tensor, "..."] | Bias | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " head"] | None = None,
) -> tuple[Float[Tensor, "batch head query value_dim"], Measurements]:
    """:func:`attention`, and what its weights are like.

    The output is the one that :func:`attention` gives, but for rounding where one kernel computes both in one pass. It
    is differentiable; the statistics are not.

    Memory: the output, the statistics, and one tile of scores; never a Lq × Lk tensor.

    Raises:
        ValueError, TypeError: as :func:`attention`; or ``statistics`` is no :class:`Statistics`, or asks for rows or
            columns that are not there.

    >>> import torch, multihead as mh
    >>> q, k, v = torch.zeros(3, 1, 2, 5, 4).unbind()
    >>> out, seen = mh.inspect(q, k, v, statistics=mh.Statistics(top=1), mask=mh.masks.causal())
    >>> seen.visible, seen.top_weights[0, 0, :, 0]
    (tensor([[[1, 2, 3, 4, 5]]]), tensor([1.0000, 0.5000, 0.3333, 0.2500, 0.2000]))
    """
    check_statistics(statistics)
    call = _call(q, k, v, mask=as_mask(mask), bias=bias, scale=scale, softcap=softcap, sinks=sinks)
    return attend_with_statistics(call, statistics)


def _call(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> AttentionCall:
    """The call as autocast, where it is on, would have it: the caller's types may differ then."""
    if all(isinstance(tensor, Tensor) for tensor in (q, k, v)):
        q, k, v = as_autocast(q, k, v)
    return AttentionCall(q, k, v, **options)
