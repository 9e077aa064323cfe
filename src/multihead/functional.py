"""Attention as functions: the output, and the output seen through."""

from jaxtyping import Bool, Float
from torch import Tensor

from multihead.core import AttentionCall, Measurements, Statistics, as_mask
from multihead.kernels import attend, measure
from multihead.masks import Mask


def attention(
    q: Float[Tensor, "batch head query dim"],
    k: Float[Tensor, "batch kv_head key dim"],
    v: Float[Tensor, "batch kv_head key value_dim"],
    *,
    mask: Mask | Bool[Tensor, "..."] | None = None,
    bias: Float[Tensor, "..."] | None = None,
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
        bias: added to the scores, broadcastable to (B, H, Lq, Lk).
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
    return attend(AttentionCall(q, k, v, as_mask(mask), bias, scale, softcap, sinks))


def inspect(
    q: Float[Tensor, "batch head query dim"],
    k: Float[Tensor, "batch kv_head key dim"],
    v: Float[Tensor, "batch kv_head key value_dim"],
    *,
    statistics: Statistics = Statistics(),  # noqa: B008
    mask: Mask | Bool[Tensor, "..."] | None = None,
    bias: Float[Tensor, "..."] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " head"] | None = None,
) -> tuple[Float[Tensor, "batch head query value_dim"], Measurements]:
    """:func:`attention`, and what its weights are like.

    The output is the one that :func:`attention` gives, bit for bit, and differentiable; the statistics are not.
    Memory: the output, the statistics, and one tile of scores; never a Lq × Lk tensor.

    >>> import torch, multihead as mh
    >>> q, k, v = torch.zeros(3, 1, 2, 5, 4).unbind()
    >>> out, seen = mh.inspect(q, k, v, statistics=mh.Statistics(top=1), mask=mh.masks.causal())
    >>> seen.visible, seen.top_weights[0, 0, :, 0]
    (tensor([[[1, 2, 3, 4, 5]]]), tensor([1.0000, 0.5000, 0.3333, 0.2500, 0.2000]))
    """
    call = AttentionCall(q, k, v, as_mask(mask), bias, scale, softcap, sinks)
    output = attend(call)
    _, measurements = measure(call, statistics)
    return output, measurements
