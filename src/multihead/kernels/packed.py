"""Several documents packed in one row: each attended on its own, so that nobody pays for pairs that nobody sees.

Tokens are put in order of their documents' lengths; documents of one length, wherever they stand, are then one
batch for SDPA, and the outputs go back to their places.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from multihead.core import AttentionCall
from multihead.kernels import sdpa
from multihead.masks import And, Causal, Documents, Mask, causal

NAME = "packed"


def refuses(call: AttentionCall) -> str | None:
    """Why this kernel cannot compute a call."""
    documents, inside = (None, None) if call.mask is None else _taken_apart(call.mask)
    if documents is None or not torch.equal(documents.queries, documents.keys):
        return "it is for documents packed in one row, alone or with a causal mask"
    if call.bias is not None:
        return "a bias would have to be packed too"
    if not _contiguous(documents.queries):
        return "a document stands in several places of its row"
    return sdpa.refuses(replace(call, mask=inside))


def attend(call: AttentionCall) -> Tensor:
    """The output of a call, (B, H, Lq, Dv).

    Memory: q, k, v and the output once more.
    """
    documents, inside = _taken_apart(call.mask)
    assert documents is not None  # noqa: S101  refused above
    batch, tokens = call.sizes.batch, call.sizes.queries
    runs = _runs_of(documents.queries.expand(batch, tokens))
    ordered = [tensor.transpose(1, 2).flatten(0, 1)[runs.order] for tensor in (call.q, call.k, call.v)]
    found, start = [], 0
    for length, count in runs.groups:
        q, k, v = (
            tensor[start : start + length * count].unflatten(0, (count, length)).transpose(1, 2) for tensor in ordered
        )
        found.append(sdpa.attend(replace(call, q=q, k=k, v=v, mask=inside)).transpose(1, 2).flatten(0, 1))
        start += length * count
    places = torch.empty_like(runs.order)
    places[runs.order] = torch.arange(len(places), device=places.device)
    return torch.cat(found)[places].unflatten(0, (batch, tokens)).transpose(1, 2)


@dataclass(frozen=True)
class _Runs:
    """The documents of a batch, those of equal length together."""

    order: Int[Tensor, " token"]
    """Tokens, counted through the whole batch, in order of their documents' lengths."""
    groups: list[tuple[int, int]]
    """Length, and number of documents that have it."""


def _runs_of(ids: Int[Tensor, "batch token"]) -> _Runs:
    lengths = torch.diff(_starts(ids).flatten().nonzero()[:, 0], append=ids.new_tensor([ids.numel()]).long())
    order = torch.repeat_interleave(lengths, lengths).argsort(stable=True)
    sizes, counts = lengths.unique(return_counts=True)
    return _Runs(order, list(zip(sizes.tolist(), counts.tolist(), strict=True)))


def _starts(ids: Int[Tensor, "batch token"]) -> Tensor:
    """True where a document begins."""
    first = torch.ones_like(ids[:, :1], dtype=torch.bool)
    return torch.cat([first, ids[:, 1:] != ids[:, :-1]], 1)


def _contiguous(ids: Int[Tensor, "batch token"]) -> bool:
    """Whether every document of a row stands in one piece."""
    return bool((_starts(ids).sum(1) == _starts(ids.sort(1).values).sum(1)).all())


def _taken_apart(mask: Mask | None) -> tuple[Documents | None, Mask | None]:
    """The documents, and what is left to say inside each; None where a mask says more than that."""
    match mask:
        case Documents():
            return mask, None
        case And(Documents() as documents, Causal()) | And(Causal(), Documents() as documents):
            return documents, causal()
        case _:
            return None, None
