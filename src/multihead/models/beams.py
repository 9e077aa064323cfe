"""Beam search: several texts are followed at once, and the one with the best score is kept.

What each text says is not copied at every step: a step notes which text each one continues, and with which token, and
the best is read backwards at the end.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multihead.models.choices import Beam
from multihead.models.writing import Writing


@dataclass(frozen=True)
class _Texts:
    """The last token of some texts of each row, and what they continue; a score of -inf where there is no text."""

    score: Float[Tensor, "batch text"]
    log_probability: Float[Tensor, "batch text"]
    step: Int[Tensor, "batch text"]
    """The step that wrote the token."""
    parent: Int[Tensor, "batch text"]
    """Which of the texts that were followed until then it continues."""
    token: Int[Tensor, "batch text"]

    def only(self, which: Bool[Tensor, "batch text"]) -> "_Texts":
        """The same texts, none where ``which`` is False."""
        return replace(self, score=self.score.masked_fill(~which, -torch.inf))

    def best(self, count: int) -> "_Texts":
        """The ``count`` with the best scores, the best first."""
        places = self.score.topk(count, 1).indices
        return _Texts(*(values.gather(1, places) for values in vars(self).values()))

    def beside(self, others: "_Texts") -> "_Texts":
        """These, then others of the same rows."""
        pairs = zip(vars(self).values(), vars(others).values(), strict=True)
        return _Texts(*(torch.cat(pair, 1) for pair in pairs))

    def over(self, penalty: float) -> "_Texts":
        """The same with scores divided by a penalty."""
        return replace(self, score=self.score / penalty)


def search(writing: Writing, beam: Beam) -> tuple[Int[Tensor, "batch token"], Float[Tensor, " batch"]]:
    """The tokens of each row's best text, its stop token to the end, and their log-probability."""
    logits = writing.read()
    batch, width, limit = logits.shape[0], beam.width, writing.max_new_tokens
    rows = torch.arange(batch, device=logits.device)[:, None]
    writing.reorder(rows.expand(batch, width).flatten())
    logits = logits.repeat_interleave(width, 0)
    followed = _beginning(batch, width, logits.device)
    ended = followed.only(torch.zeros_like(followed.token, dtype=torch.bool))
    done = torch.zeros(batch, 1, dtype=torch.bool, device=logits.device)
    steps: list[_Texts] = []
    while len(steps) < limit and not bool(done.all()):
        if steps:
            writing.reorder((rows * width + followed.parent).flatten())
            logits = writing.go_on(followed.token.flatten())
        # so many that the width best that go on are surely among them
        more = _continued(followed, logits, len(steps), width * (1 + len(writing.stop)))
        stops = torch.isin(more.token, writing.stop)
        followed = more.only(~stops).best(width)
        steps.append(followed)
        # a row that is done takes no more: what it says must not depend on the rows beside it
        first = torch.arange(more.token.shape[1], device=logits.device) < width
        penalty = beam.penalty(len(steps))
        ended = ended.beside(more.only(stops & first & ~done).over(penalty)).best(width)
        if len(steps) == limit:
            ended = ended.beside(followed.only(~done.expand_as(followed.token)).over(penalty)).best(width)
        enough = ended.score.isfinite().all(1, keepdim=True)
        # log-probabilities only fall, so this is the best that a text that is still followed can come to
        hope = followed.score[:, :1] / beam.penalty(limit)
        done = done | enough | (ended.score[:, :1] >= hope)
    return _read_back(steps, ended)


def _beginning(batch: int, width: int, device: torch.device) -> _Texts:
    """What is followed before the first step: one text of probability 1, since all of a row begin alike."""
    score = torch.full((batch, width), -torch.inf, device=device)
    score[:, 0] = 0.0
    numbers = torch.zeros(batch, width, dtype=torch.int64, device=device)
    return _Texts(score, score, numbers, numbers, numbers)


def _continued(followed: _Texts, logits: Float[Tensor, "sequence vocab"], step: int, count: int) -> _Texts:
    """The ``count`` likeliest texts of one token more, if there are so many."""
    batch, width = followed.score.shape
    vocabulary = logits.shape[-1]
    found = logits.float().log_softmax(-1).view(batch, width, vocabulary)
    total = (followed.score[..., None] + found).flatten(1)
    total, place = total.topk(min(count, width * vocabulary), 1)
    return _Texts(total, total, torch.full_like(place, step), place // vocabulary, place % vocabulary)


def _read_back(steps: list[_Texts], ended: _Texts) -> tuple[Tensor, Tensor]:
    """The tokens of each row's best text, from its last to its first, and their log-probability."""
    best = ended.best(1)
    tokens = best.token.repeat(1, int(best.step.max()) + 1)
    parent = best.parent
    for number in range(tokens.shape[1] - 1, -1, -1):
        inside = number < best.step
        written = steps[number].token.gather(1, parent)
        tokens[:, number : number + 1] = torch.where(inside, written, best.token)
        parent = torch.where(inside, steps[number].parent.gather(1, parent), parent)
    return tokens, best.log_probability.squeeze(1)
