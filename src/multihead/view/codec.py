"""q and k of a layer as integers, as few bits as the weights need: the numbers of ``docs/page-format.md``.

A page draws weights, so the error that counts is that of the weights. Only the products q·k matter, which leaves three
freedoms:

* a constant vector may be subtracted from all keys: it shifts a row's scores, which softmax does not see (not below a
  softcap);
* q may be multiplied by any invertible A if k is multiplied by A⁻ᵀ. The A chosen here makes both covariances the same
  diagonal matrix diag(s), so that no direction is written more finely on one side than its partner on the other can
  use;
* direction i then gets the step c/√s_i: all directions contribute the same error to the scores (reverse water-filling,
  Cover & Thomas, Elements of Information Theory, theorem 10.3.3), and those that matter less than that vanish.

A weight P moves by at most P(1 - P) times the error of its score, so a query whose attention is broad, and a key that
nobody looks at, may be written more coarsely than the others of their head: each has its own power of two.

What is left is one number c for each head. The error grows with it in proportion, so it is measured at a guess,
scaled, and measured again.
"""

import math
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from multihead.recording import Layer
from multihead.recording.whole import kept_of

ACCURACY = 9e-6
"""The largest difference between a weight drawn and the recorded one, unless the caller says otherwise.

A float32 model's own paths (fused, eager) differ by up to about 1e-6, so this is within 1e-5 of each of them.
"""

BUDGET = 1 << 28
"""Weights of a page that are compared one by one, some five seconds' worth; beyond, a sample of rows is."""

SAMPLE = 256
"""Rows of each head that are compared where there are too many to compare all."""

_RISKIEST = 64
_AIM = 0.95
_ENOUGH = 0.85
_CHUNK = 1 << 18
_REMEMBERED = 1 << 22
_ATTEMPTS = 8
_LARGEST = 1 << 30
_COARSEST = 15
_WORKERS = 4


@dataclass(frozen=True)
class Encoded:
    """One layer's numbers as a page carries them."""

    q: np.ndarray
    """u8, (bytes, H, D, Lq)."""
    k: np.ndarray
    """u8, (bytes, H, D, Lk)."""
    q_shift: np.ndarray
    """u8, (H, Lq): the integers of a query are multiples of two to this power, and written without it."""
    k_shift: np.ndarray
    """u8, (H, Lk)."""
    steps: np.ndarray
    """f64, (H, D): the factor of a direction's product of integers."""
    lse: np.ndarray
    """f64, (H, Lq), of the scores that the integers give."""
    bias: np.ndarray | None
    """f32, (H or 1, Lq, Lk)."""
    accuracy: float
    """The largest difference of a weight that was found."""
    rows: int
    """Rows of each head that were compared."""


class Truth:
    """The weights of one layer and one sequence of the batch, in float64, some rows of one head at a time.

    Raises:
        RecordingError: q, k or the log-sum-exp were not kept.
        ValueError: NaN or inf reach the weights.
    """

    def __init__(self, layer: Layer, item: int = 0) -> None:
        q, k, lse = kept_of(layer)
        self.layer, self.item = layer, item
        self.q = _finite(q[item]).mul_(layer.scale)
        self.k = _finite(k[item, list(layer.kv_heads)])
        self.lse = lse[item].detach().cpu().double()
        if not (self.lse < torch.inf).all():
            raise ValueError(
                f"layer {layer.index}: NaN or inf in q or k reaches the weights, so there is nothing to draw; look at "
                "the model first."
            )
        self.heads, self.rows, _ = self.q.shape
        self.keys = self.k.shape[1]
        self.queries = (
            torch.arange(layer.sizes.queries)
            if layer.queries is None
            else torch.tensor(layer.queries, dtype=torch.int64)
        )
        self.shift = torch.zeros_like(self.lse)
        if layer.softcap is None and self.keys:
            mean = self.k.mean(1, keepdim=True)
            self.shift += (self.q @ mean.mT)[..., 0]
            self.k -= mean
        self.bias = self._bias()
        self.sinks = None if layer.sinks is None else layer.sinks.detach().cpu().double()

    def _bias(self) -> Tensor | None:
        """The bias without what all keys of a row have in common, where that would swallow the scores' digits.

        It is -3.4e38 in a row in which everything is hidden by the smallest number there is.
        """
        if self.layer.bias is None:
            return None
        bias = self.layer.bias[min(self.item, self.layer.bias.shape[0] - 1)].detach().cpu().double()
        bias = bias.expand(-1, self.rows, self.keys).clone()
        if not self.keys:
            return bias
        highest = bias.amax(-1, keepdim=True)
        common = highest.masked_fill((highest > -1e6) | (highest == -torch.inf), 0.0)
        self.shift += common[..., 0]
        return bias.sub_(common)

    def visible(self, rows: Tensor) -> Tensor | None:
        """What these rows may see, (H or 1, rows or 1, Lk or 1); None for everything."""
        layer = self.layer
        if layer.mask is None:
            return None
        seen = layer.mask.visible(self.queries[rows], torch.arange(self.keys), layer.sizes)
        seen = seen[self.item if seen.shape[0] != 1 else 0]
        return seen[list(layer.heads)] if seen.shape[0] != 1 else seen

    def finish(self, scores: Tensor, head: int, rows: Tensor, seen: Tensor | None, bias: Tensor | None) -> Tensor:
        """Final scores of products q·k, in place: softcap, bias, mask."""
        cap = self.layer.softcap
        if cap is not None:
            scores.div_(cap).tanh_().mul_(cap)
        if bias is not None:
            scores += bias[_one(bias, head), rows]
        if seen is not None:
            scores.masked_fill_(~seen[_one(seen, head)], -torch.inf)
        return scores

    def normalised(self, scores: Tensor, head: int, rows: Tensor, *, short: bool = False) -> tuple[Tensor, Tensor]:
        """Weights in the place of final scores, and log Σ exp, the sink's included, rounded before its use if short."""
        if not self.keys:
            return scores, scores.new_full(scores.shape[:-1], -torch.inf)
        largest = scores.amax(-1)
        largest.masked_fill_(largest == -torch.inf, 0.0)
        lse = scores.sub_(largest[..., None]).exp_().sum(-1).log_().add_(largest)
        if self.sinks is not None:
            lse = torch.logaddexp(lse, self.sinks[head] - self.shift[head, rows])
        lse = _short(lse) if short else lse
        return scores.mul_((largest - lse.masked_fill(lse == -torch.inf, 0.0)).exp_()[..., None]), lse

    def weights(self, head: int, rows: Tensor) -> Tensor:
        """The weights of some rows, (rows, Lk)."""
        scores = self.finish(self.q[head, rows] @ self.k[head].mT, head, rows, self.visible(rows), self.bias)
        return self.normalised(scores, head, rows)[0]


def encode(layer: Layer, *, item: int = 0, accuracy: float = ACCURACY, budget: int = BUDGET) -> Encoded:
    """The integers of one layer, for one sequence of the batch.

    Args:
        layer: with q, k and lse.
        item: the sequence.
        accuracy: largest difference of a weight to allow. Where the recorded numbers themselves do not allow it (a
            float32 lse for more rows than can be compared), the result says what was reached.
        budget: weights that may be compared; at least ``SAMPLE`` rows of each head are.

    Memory and time: O(H · (Lq + Lk) · D), and the compared weights, a chunk at a time; where they are at most 2²², all.

    Raises:
        RecordingError: as :class:`Truth`.
        ValueError: as :class:`Truth`, or accuracy is not positive.
    """
    if not 0 < accuracy < 1:
        raise ValueError(
            f"accuracy={accuracy} is no number between 0 and 1: it is the largest error of a weight, such as "
            f"{ACCURACY}."
        )
    return _Encoder(Truth(layer, item), accuracy, budget).encoded()


def encode_all(layers: Sequence[Layer], *, item: int = 0, accuracy: float = ACCURACY) -> Generator[Encoded, None, None]:
    """Each layer's integers in order, several layers at a time, with one ``BUDGET`` for all."""
    budget = BUDGET // max(1, len(layers))
    threads = torch.get_num_threads()
    try:
        # one thread computes one layer alone: torch's own threads wait for each other at every step, which takes
        # twenty times as long as soon as another program wants a core
        with ThreadPoolExecutor(min(threads, _WORKERS), "multihead", torch.set_num_threads, (1,)) as pool:
            yield from pool.map(lambda layer: encode(layer, item=item, accuracy=accuracy, budget=budget), layers)
    finally:
        torch.set_num_threads(threads)


class _Encoder:
    """Finds each head's c."""

    def __init__(self, truth: Truth, accuracy: float, budget: int) -> None:
        self.truth, self.accuracy = truth, accuracy
        self._known: dict[int, Tensor] = {}
        self.all_rows = truth.rows <= max(SAMPLE, budget // max(1, truth.heads * truth.keys))
        forward, backward, self.spread = _balanced(truth.q, truth.k)
        self.q, self.k = truth.q @ forward, truth.k @ backward
        self.lse = truth.lse - truth.shift
        self.risky = self._risky_rows()
        self.bias = None if truth.bias is None else truth.bias.float().double()
        self.q_shift, self.k_shift = self._shifts()
        widest = torch.zeros_like(self.spread)
        for side in (self.q, self.k):
            if side.shape[1]:
                widest = widest.maximum(side.abs().amax(1))
        self.least = (
            (widest * self.spread.sqrt()).amax(-1, keepdim=True) / _LARGEST
            if widest.shape[1]
            else widest.new_zeros(truth.heads, 1)
        )
        self.most = self.spread.amax(-1, keepdim=True) if widest.shape[1] else widest.new_ones(truth.heads, 1)

    def _risky_rows(self) -> Tensor:
        """(H, r): the rows whose weights are likely to move most, in their order.

        A weight P moves by at most P(1 - P) times its score's error relative to the others.
        """
        truth, few = self.truth, min(_RISKIEST, self.truth.rows)
        highest = truth.layer.statistics.max_score
        if highest is None:
            spread = torch.linspace(0, max(truth.rows - 1, 0), few).long()
            return spread.expand(truth.heads, -1)
        largest = (highest[truth.item].detach().cpu().double() - truth.lse).exp().nan_to_num_(0.0).clamp_(0.0, 1.0)
        size = ((self.q**2 / self.spread[:, None]).sum(-1) + self.q.shape[-1]).sqrt()
        # below 1/2 a row of equal weights still moves; above, the rest of the row is as small as 1 - P
        return (largest * (1 - largest) * size).topk(few, -1).indices.sort(-1).values

    def _shifts(self) -> tuple[Tensor, Tensor]:
        """(H, Lq) and (H, Lk): how many bits less than the riskiest of its head each query and each key needs.

        0 where not all rows are looked at: what a key needs is known only from all of them.
        """
        truth = self.truth
        risks = [self.q.new_zeros(side.shape[:2]) for side in (self.q, self.k)]
        if not self.all_rows or not truth.keys or not truth.rows:
            return risks[0], risks[1]
        q_size, k_size = ((side**2 / self.spread[:, None]).sum(-1).sqrt() for side in (self.q, self.k))
        for head in range(truth.heads):
            for part in torch.arange(truth.rows).split(max(1, _CHUNK // truth.keys)):
                moved = self._true(head, part)
                moved = moved * (1 - moved)
                risks[0][head, part] = (moved * k_size[head]).amax(-1)
                risks[1][head] = risks[1][head].maximum((moved * q_size[head, part, None]).amax(0))
        highest = torch.maximum(risks[0].amax(-1), risks[1].amax(-1))[:, None]
        shifts = [(highest / risk).log2().nan_to_num_(0.0).floor_().clamp_(0, _COARSEST) for risk in risks]
        return shifts[0], shifts[1]

    def _true(self, head: int, rows: Tensor) -> Tensor:
        """The true weights of some rows, ascending; where there are few weights in all, computed once."""
        truth = self.truth
        if truth.heads * truth.rows * truth.keys > _REMEMBERED:
            return truth.weights(head, rows)
        if head not in self._known:
            self._known[head] = truth.weights(head, torch.arange(truth.rows))
        return self._known[head] if len(rows) == truth.rows else self._known[head][rows]

    def _checked_rows(self, head: int) -> Tensor:
        rows = self.truth.rows
        if self.all_rows:
            return torch.arange(rows)
        evenly = torch.linspace(0, rows - 1, SAMPLE - self.risky.shape[1]).long()
        return torch.cat([self.risky[head], evenly]).unique()

    def encoded(self) -> Encoded:
        """Measure, scale, and measure all that are to be measured until every head is within its limit."""
        truth, heads = self.truth, range(self.truth.heads)
        limits = torch.tensor([max(self.accuracy, 2 * self._floor(head)) for head in heads], dtype=torch.float64)
        c = torch.full((truth.heads, 1), self.accuracy / math.sqrt(max(1, self.q.shape[-1])), dtype=torch.float64)
        c = c.clamp(self.least, self.most.maximum(self.least))
        for _ in range(2):
            errors = torch.tensor(
                [self._error(head, self._rounded(head, c), self.risky[head]) for head in heads], dtype=torch.float64
            )
            c = self._scaled(c, errors, limits)
        return self._written(*self._settled(c, limits))

    def _settled(self, c: Tensor, limits: Tensor) -> tuple[Tensor, float]:
        """The largest c found for each head with which its measured rows are within the limit, and the largest error.

        A head that fails is tried with a smaller c until it passes; one that passes by far is tried once with a larger.
        """
        passed, reached = torch.zeros_like(limits), torch.zeros_like(limits)
        pending = list(range(len(limits)))
        for attempt in range(_ATTEMPTS):
            errors, lse, tried = reached.clone(), self.lse.clone(), pending
            for head in tried:
                errors[head] = self._error(head, self._rounded(head, c), self._checked_rows(head), lse)
            pending = []
            for head in tried:
                last = attempt == _ATTEMPTS - 1 or bool(c[head] <= self.least[head])
                first_pass = not passed[head]
                if errors[head] <= limits[head] or (first_pass and last):
                    passed[head], reached[head], self.lse[head] = c[head], errors[head], lse[head]
                    if first_pass and not last and errors[head] < _ENOUGH * limits[head] and c[head] < self.most[head]:
                        pending.append(head)
                elif first_pass:
                    pending.append(head)
            if not pending:
                break
            c = self._scaled(c, errors, limits)
        return passed[:, None], float(reached.max()) if len(limits) else 0.0

    def _scaled(self, c: Tensor, errors: Tensor, limits: Tensor) -> Tensor:
        factor = torch.where(errors > 0, _AIM * limits / errors, torch.inf)
        return (c * factor[:, None]).minimum(self.most).maximum(self.least)

    def _steps(self, c: Tensor) -> Tensor:
        """(..., D) steps; 1 in heads that hold nothing."""
        return torch.where(c > 0, c / self.spread.sqrt(), 1.0)

    def _rounded(self, head: int, c: Tensor) -> tuple[Tensor, Tensor]:
        """One head's integers, those of q multiplied by the squared steps."""
        step = self._steps(c)[head]
        q_unit, k_unit = (shift[head, :, None].exp2() for shift in (self.q_shift, self.k_shift))
        q = (self.q[head] / (step * q_unit)).round_().mul_(step**2 * q_unit)
        return q, (self.k[head] / (step * k_unit)).round_().mul_(k_unit)

    def _floor(self, head: int) -> float:
        """The error that a page would have without any rounding of q and k: that of a float32 lse or bias."""
        if self.all_rows and self.bias is None:
            return 0.0
        return self._error(head, (self.truth.q[head], self.truth.k[head]), self.risky[head])

    def _error(self, head: int, decoded: tuple[Tensor, Tensor], rows: Tensor, keep: Tensor | None = None) -> float:
        """The largest difference between decoded and true weights in some rows; ``keep`` takes the former's lse."""
        truth, worst = self.truth, 0.0
        if not truth.keys:
            return worst
        for part in rows.split(max(1, _CHUNK // truth.keys)):
            if not len(part):
                continue
            scores = truth.finish(decoded[0][part] @ decoded[1].mT, head, part, truth.visible(part), self.bias)
            if self.all_rows:
                found, lse = truth.normalised(scores, head, part, short=True)
            else:
                lse = self.lse[head, part]
                found = _weights(scores, lse)
            low, high = found.sub_(self._true(head, part)).aminmax()
            worst = max(worst, -float(low), float(high))
            if keep is not None:
                keep[head, part] = lse
        return worst

    def _written(self, c: Tensor, accuracy: float) -> Encoded:
        step = self._steps(c)
        shifts = (self.q_shift, self.k_shift)
        q, k = (
            (side / (step[:, None] * shift[..., None].exp2())).round_().long()
            for side, shift in zip((self.q, self.k), shifts, strict=True)
        )
        q_shift, k_shift = (shift.to(torch.uint8).numpy() for shift in shifts)
        compared = (
            self.truth.rows if self.all_rows else min(len(self._checked_rows(head)) for head in range(self.truth.heads))
        )
        bias = None if self.truth.bias is None else self.truth.bias.float().numpy()
        return Encoded(
            planes(q), planes(k), q_shift, k_shift, (step**2).numpy(), self.lse.numpy(), bias, accuracy, compared
        )


def planes(integers: Tensor) -> np.ndarray:
    """(H, L, D) integers as zigzag coded byte planes, (bytes, H, D, L), as few as hold the largest.

    >>> planes(torch.tensor([[[0], [-1], [1], [300]]])).tolist()
    [[[[0, 1, 2, 88]]], [[[0, 0, 0, 2]]]]
    """
    coded = ((integers << 1) ^ (integers >> 63)).mT.contiguous().numpy()
    count = max(1, (int(coded.max()).bit_length() + 7) // 8) if coded.size else 1
    split = coded.astype("<u4")[..., None].view(np.uint8)[..., :count]
    return np.ascontiguousarray(np.moveaxis(split, -1, 0))


def _balanced(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A, A⁻ᵀ and s such that q A and k A⁻ᵀ both have the second moments diag(s); (H, D, D) and (H, D).

    With C_q = L Lᵀ and Lᵀ C_k L = U s² Uᵀ: A = L⁻ᵀ U √s.
    """
    dim = q.shape[-1]
    moments = [side.mT @ side / max(1, side.shape[1]) for side in (q, k)]
    level = moments[0].diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] if dim else q.new_zeros(len(q), 1, 1)
    ridge = (1e-12 * level + 1e-60) * torch.eye(dim, dtype=q.dtype)
    lower = torch.linalg.cholesky(moments[0] + ridge)
    squares, turn = torch.linalg.eigh(lower.mT @ moments[1] @ lower)
    spread = squares.clamp_min(0.0).sqrt()
    if dim:
        # directions in which nothing varies get a tiny spread, hence a huge step and no bits
        spread = spread.maximum(spread.amax(-1, keepdim=True) * 1e-12)
    spread = torch.where(spread > 0, spread, 1.0)
    root = spread.sqrt()[:, None]
    forward = torch.linalg.solve_triangular(lower.mT, turn, upper=True) * root
    return forward, (lower @ turn) / root, spread


def _weights(scores: Tensor, lse: Tensor) -> Tensor:
    """exp(score - lse), 0 in a row that sees nothing; overwrites the scores."""
    return scores.sub_(lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp_()


def _short(lse: Tensor) -> Tensor:
    """Rounded to 2⁻²⁸, so that the last bytes compress to nothing."""
    return lse.mul(1 << 28).round_().div_(1 << 28)


def _finite(tensor: Tensor) -> Tensor:
    """A copy in float64 in which NaN and inf are 0: they stand where nobody looks, or the lse tells."""
    return tensor.detach().cpu().double().nan_to_num(0.0, 0.0, 0.0).clone()


def _one(tensor: Tensor, head: int) -> int:
    return head if tensor.shape[0] != 1 else 0
