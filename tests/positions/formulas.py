"""The formulas of the papers, written as plainly as they can be: what the position schemes are compared with."""

import math

import torch
from torch import Tensor


def turned(
    x: Tensor, positions: Tensor, frequencies, pairs: str, dtype: torch.dtype = torch.float64, amplitude: float = 1.0
) -> Tensor:
    """Each pair of features as one complex number, times e^(i · position · frequency); other features as they are."""
    half = len(frequencies)
    first, second = {
        "halves": (slice(0, half), slice(half, 2 * half)),
        "interleaved": (slice(0, 2 * half, 2), slice(1, 2 * half, 2)),
    }[pairs]
    wide = x.to(dtype)
    angles = positions[:, None, :, None].to(dtype) * torch.tensor(frequencies, dtype=dtype)
    numbers = torch.complex(wide[..., first], wide[..., second]) * torch.polar(
        torch.full_like(angles, amplitude), angles
    )
    rows = list(wide.unbind(-1))
    for place, column in zip(range(2 * half)[first], numbers.real.unbind(-1), strict=True):
        rows[place] = column
    for place, column in zip(range(2 * half)[second], numbers.imag.unbind(-1), strict=True):
        rows[place] = column
    return torch.stack(rows, -1)


def linear_bias(slopes, queries, keys) -> Tensor:
    """Minus slope times distance, cell by cell, (head, query, key)."""
    return torch.tensor(
        [[[-slope * abs(query - key) for key in keys] for query in queries] for slope in slopes], dtype=torch.float64
    )


def waves(positions: Tensor, embed_dim: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Sine and cosine of each position, column by column, (batch, token, embed)."""
    columns = []
    for feature in range(embed_dim):
        angle = positions.to(dtype) * 10_000.0 ** (-2 * (feature // 2) / embed_dim)
        columns.append(angle.cos() if feature % 2 else angle.sin())
    return torch.stack(columns, -1)


def bucketed_bias(table: Tensor, distances: Tensor, buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """The table's entries by the logarithmic formula, cell by cell, (..., head); a distance is query less key."""
    found = []
    for value in distances.flatten().tolist():
        first, count, distance = 0, buckets, max(value, 0)
        if bidirectional:
            count, distance = buckets // 2, abs(value)
            first = count if value < 0 else 0
        exact = count // 2
        place = distance
        if distance >= exact:
            share = math.log2(distance / exact) / math.log2(max_distance / exact)
            place = min(exact + int(share * (count - exact)), count - 1)
        found.append(table[first + place])
    return torch.stack(found).view(*distances.shape, -1)
