"""How the next token is chosen from the logits: an object, not a row of flags."""

import abc
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multihead.conventions import checked_count, checked_number, mismatch

__all__ = ["Beam", "Choice", "Greedy", "Sample"]


class Choice(abc.ABC):
    """How one token is chosen for each row; derive from it for a rule of your own."""

    @abc.abstractmethod
    def choose(
        self, logits: Float[Tensor, "batch vocab"], generator: torch.Generator | None = None
    ) -> Int[Tensor, " batch"]:
        """The next token of each row."""


@dataclass(frozen=True)
class Greedy(Choice):
    """Always the likeliest token.

    >>> Greedy().choose(torch.tensor([[0.1, 2.0, 1.0]]))
    tensor([1])
    """

    def choose(
        self,
        logits: Float[Tensor, "batch vocab"],
        generator: torch.Generator | None = None,  # noqa: ARG002
    ) -> Int[Tensor, " batch"]:
        """The likeliest token of each row, of equal ones the first."""
        return logits.argmax(-1)


@dataclass(frozen=True, kw_only=True)
class Sample(Choice):
    r"""A token drawn from :math:`\mathrm{softmax}(logits / temperature)`, cut to the likeliest.

    Args:
        temperature: below 1 the likely become likelier, above 1 less so.
        top_k: draw from the k likeliest only (Fan et al. 2018); None: from all.
        top_p: draw from the nucleus only, the fewest likeliest tokens that have at least this probability together
            (Holtzman et al. 2020); None: from all. With both, the nucleus is that of the k, renormalised.

    Raises:
        ValueError, TypeError: a number out of its range.

    >>> Sample(top_k=1).choose(torch.tensor([[0.1, 2.0, 1.0]]))
    tensor([1])
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        checked_number("temperature", self.temperature)
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise mismatch("temperature", self.temperature, "a positive number", "Greedy() is the limit at 0.")
        if self.top_k is not None:
            checked_count("top_k", self.top_k)
        if self.top_p is not None:
            checked_number("top_p", self.top_p)
            if not 0.0 < self.top_p <= 1.0:
                raise mismatch("top_p", self.top_p, "above 0 and at most 1", "it is the nucleus's probability.")

    def choose(
        self, logits: Float[Tensor, "batch vocab"], generator: torch.Generator | None = None
    ) -> Int[Tensor, " batch"]:
        """A token of each row, drawn with ``generator``, or torch's own where there is none."""
        tokens, probabilities = self.candidates(logits)
        place = torch.multinomial(probabilities, 1, generator=generator)
        return tokens.gather(-1, place).squeeze(-1)

    def candidates(
        self, logits: Float[Tensor, "batch vocab"]
    ) -> tuple[Int[Tensor, "batch candidate"], Float[Tensor, "batch candidate"]]:
        """The tokens that may be drawn in each row, the likeliest first where it is cut, and their probabilities.

        A token outside the nucleus has probability 0.
        """
        scores = logits.float() / self.temperature
        if self.top_k is None and self.top_p is None:
            return torch.arange(logits.shape[-1], device=logits.device).expand_as(logits), scores.softmax(-1)
        count = scores.shape[-1] if self.top_k is None else min(self.top_k, scores.shape[-1])
        scores, tokens = scores.topk(count, -1)
        probabilities = scores.softmax(-1)
        if self.top_p is not None:
            before = probabilities.cumsum(-1) - probabilities
            # the likeliest stays whatever its probability, also where rounding says otherwise
            outside = before >= self.top_p
            outside[..., 0] = False
            probabilities = probabilities.masked_fill(outside, 0.0)
            probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        return tokens, probabilities


@dataclass(frozen=True)
class Beam:
    r"""The likeliest text that a beam search finds, by log-probability over length.

    .. math:: score(Y) = \frac{\log P(Y)}{((5 + |Y|) / 6)^\alpha}

    (Wu et al. 2016, equation 14, without coverage; :math:`|Y|` counts the tokens written, the stop token included.)

    Args:
        width: texts that are followed at once; 1 is greedy.
        length_penalty: α; 0 compares log-probabilities, more favours longer texts.

    A text that ends, with a stop token among the ``width`` likeliest continuations, is kept aside. A row is done when
    ``width`` texts are, or when nothing still followed can overtake the best of them. Vaswani et al. 2017, section 6.1,
    used a width of 4 and α = 0.6.

    Raises:
        ValueError, TypeError: a number out of its range.
    """

    width: int = 4
    length_penalty: float = 0.6

    def __post_init__(self) -> None:
        checked_count("width", self.width)
        checked_number("length_penalty", self.length_penalty)
        if not (math.isfinite(self.length_penalty) and self.length_penalty >= 0):
            raise mismatch("length_penalty", self.length_penalty, "0 or more", "0 compares log-probabilities.")

    def penalty(self, length: int) -> float:
        """What a log-probability of ``length`` tokens is divided by.

        >>> Beam(4, 0.6).penalty(1), round(Beam(4, 0.6).penalty(7), 4)
        (1.0, 1.5157)
        """
        return ((5 + length) / 6) ** self.length_penalty
