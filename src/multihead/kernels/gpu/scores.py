"""What the programs do with one tile: read queries, keys and tables, and make scores of them.

Triton compiles these into the programs; no GPU calls them by themselves.
"""

# the shape checks under pytest would stand between Triton and the source that it compiles
from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def _tanh(x):
    """The hyperbolic tangent to the last bit or two: near 0 by a polynomial (Cephes, tanhf.c), elsewhere by exp."""
    size = tl.abs(x)
    size = tl.where(size > 20.0, 20.0, size)
    square = size * size
    inner = (((-5.70498872745e-3 * square + 2.06390887954e-2) * square - 5.37397155531e-2) * square) + 1.33314422036e-1
    low = size + size * square * (inner * square - 3.33332819422e-1)
    high = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
    answer = tl.where(size < 0.625, low, high)
    return tl.where(x < 0.0, -answer, answer)


@triton.jit
@no_type_check
def _product(left, right, WIDE: tl.constexpr):
    """A matrix product in full precision; WIDE where the machine cannot multiply small types."""
    if WIDE:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision="ieee")
    return tl.dot(left, right, input_precision="ieee")


@triton.jit
@no_type_check
def weighted(weights, values, WIDE: tl.constexpr):
    """float32 weights times values of any type, as exact as in float32.

    Small types are multiplied as such: a weight is the sum of three bfloat16, or of two float16.
    """
    if WIDE or values.dtype == tl.float32:
        return tl.dot(weights, values.to(tl.float32), input_precision="ieee")
    first = weights.to(values.dtype)
    rest = weights - first.to(tl.float32)
    if values.dtype == tl.float16:
        # what is left of a weight is too small for float16 as it is
        second = (rest * 2048.0).to(tl.float16)
        return tl.dot(first, values) + tl.dot(second, values) * (1.0 / 2048.0)
    second = rest.to(values.dtype)
    third = (rest - second.to(tl.float32)).to(values.dtype)
    return tl.dot(third, values) + tl.dot(second, values) + tl.dot(first, values)


@triton.jit
@no_type_check
def vectors(tensor, base, numbers, near, WIDTH: tl.constexpr, stride, dim_stride, width):
    """Rows of a matrix by their numbers, padded with 0 to WIDTH."""
    dims = tl.arange(0, WIDTH)
    places = base + numbers.to(tl.int64)[:, None] * stride + dims.to(tl.int64)[None, :] * dim_stride
    return tl.load(tensor + places, mask=near[:, None] & (dims < width)[None, :], other=0.0)


@triton.jit
@no_type_check
def _table(table, batch, head, rows, places, keys, near, BY_PLACE: tl.constexpr):
    """A tile of a bias or a dense mask, (tensor, strides, first row, first key), read where it lies."""
    tensor, strides, first_row, first_key = table
    down = rows if not BY_PLACE else places.to(tl.int64) - first_row
    across = keys.to(tl.int64) - first_key
    base = batch.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1]
    return tl.load(tensor + base + down[:, None] * strides[2] + across[None, :] * strides[3], mask=near, other=0)


@triton.jit
@no_type_check
def scored(
    q, k, batch, head, rows, places, ours, keys, near, spans, mask, bias, scale, softcap,
    MASK_BY_PLACE: tl.constexpr, BIAS_BY_PLACE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One tile's scores, -inf where hidden, and what is visible."""
    scores = _product(q, tl.trans(k), WIDE) * scale
    if softcap is not None:
        scores = softcap * _tanh(scores / softcap)
    if bias is not None:
        scores += _table(bias, batch, head, rows, places, keys, near, BIAS_BY_PLACE).to(tl.float32)
    visible = near
    if spans is not None:
        first, stop, strides = spans
        base = batch.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1]
        where = base + places.to(tl.int64) * strides[2]
        begin = tl.load(first + where, mask=ours, other=0)
        end = tl.load(stop + where, mask=ours, other=0)
        visible = visible & (keys[None, :] >= begin[:, None]) & (keys[None, :] < end[:, None])
    if mask is not None:
        visible = visible & (_table(mask, batch, head, rows, places, keys, near, MASK_BY_PLACE) != 0)
    return tl.where(visible, scores, -float("inf")), visible


@triton.jit
@no_type_check
def limit(limits, batch, head, tile, low, high):
    """From where to where a tile's work reaches, within ``low`` and ``high``."""
    first, stop, strides = limits
    where = batch.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1] + tile
    return tl.maximum(tl.load(first + where), low), tl.minimum(tl.load(stop + where), high)
