"""How fast features turn, and how to slow them so that a trained model reads longer texts.

All numbers here are Python floats, in double precision: nothing depends on a tensor's type.
"""

import abc
import math
from dataclasses import dataclass

from multihead.conventions import checked_count, checked_number, mismatch


def geometric_frequencies(dim: int, base: float) -> tuple[float, ...]:
    """Radians per token of each pair of features, base^(-2i/dim) for i = 0 to dim/2 - 1.

    Source: Vaswani et al. 2017, section 3.5; Su et al. 2021, section 3.2.2.
    """
    return tuple(base ** (-2 * pair / dim) for pair in range(dim // 2))


class Scaling(abc.ABC):
    """Other frequencies for a :class:`Rotary` whose texts became longer than those it learned from."""

    @abc.abstractmethod
    def frequencies(self, dim: int, base: float) -> tuple[float, ...]:
        """Radians per token of each of the dim/2 pairs.

        Raises:
            ValueError: this scaling has no meaning for so few features.
        """

    @property
    def amplitude(self) -> float:
        """Factor of cosines and sines: scores grow by its square, as with another temperature of the softmax."""
        return 1.0


@dataclass(frozen=True)
class Linear(Scaling):
    r"""Position interpolation: all frequencies are divided by ``factor``.

    .. math:: \theta_i' = \theta_i / factor

    Source: Chen et al. 2023, section 2.3. The model wants some fine-tuning.

    Args:
        factor: how many times longer texts become.

    Raises:
        TypeError: ``factor`` is no number.
        ValueError: ``factor`` is below 1.

    >>> Linear(4.0).frequencies(4, base=100.0)
    (0.25, 0.025)
    """

    factor: float

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    def frequencies(self, dim: int, base: float) -> tuple[float, ...]:
        """The plain ones, divided."""
        return tuple(frequency / self.factor for frequency in geometric_frequencies(dim, base))


@dataclass(frozen=True)
class NTK(Scaling):
    r"""A larger base: the slowest pair turns ``factor`` times slower, the fastest as before.

    .. math:: base' = base \cdot factor^{d/(d-2)}

    Source: bloc97 2023, "NTK-aware scaled RoPE"; Peng et al. 2023, section 3.1. It works without
    fine-tuning.

    The *dynamic* variant chooses the factor anew from the length of each text. Keys that are in a cache were then
    turned with other frequencies than those that follow, so it is not offered. For texts of L tokens after training on
    L₀, its factor s amounts to ``NTK(s * L / L0 - (s - 1))``, which serves every text up to L.

    Args:
        factor: how many times longer texts become.

    Raises:
        TypeError: ``factor`` is no number.
        ValueError: ``factor`` is below 1.

    >>> [round(frequency, 4) for frequency in NTK(4.0).frequencies(4, base=100.0)]
    [1.0, 0.025]
    """

    factor: float

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    def frequencies(self, dim: int, base: float) -> tuple[float, ...]:
        """The plain ones of the larger base."""
        if dim < 4:
            raise mismatch("the number of features that turn", dim, "at least 4", "NTK keeps the first pair as it is.")
        return geometric_frequencies(dim, base * self.factor ** (dim / (dim - 2)))


@dataclass(frozen=True)
class YaRN(Scaling):
    r"""Slow pairs are interpolated, fast ones kept, and the softmax is sharpened.

    .. math:: \theta_i' = \theta_i \, (1 - r_i) + \frac{\theta_i}{factor} \, r_i, \quad
              r_i = \mathrm{clamp}\Big(\frac{i - i(\beta_{fast})}{i(\beta_{slow}) - i(\beta_{fast})}, 0, 1\Big), \quad
              i(\beta) = \frac{d \ln(L_0 / 2 \pi \beta)}{2 \ln base}

    where i(β) is the pair that turns β times in a text of the original length L₀. Cosines and sines are multiplied by
    0.1 · ln(factor) + 1.

    Source: Peng et al. 2023, sections 3.2 and 3.4; the ramp runs over the pair's number, as in the authors' released
    code and in Hugging Face's, while the paper writes it over the number of turns.

    Args:
        factor: how many times longer texts become.
        original_length: tokens of the texts that the model learned from, L₀.
        beta_fast: pairs that turn more often than this in L₀ tokens are kept.
        beta_slow: pairs that turn less often than this are interpolated.
        attention_factor: of cosines and sines; None: by the formula above.
        mscale, mscale_all_dim: given together (DeepSeek-V2), the attention factor is
            (0.1 · mscale · ln(factor) + 1) / (0.1 · mscale_all_dim · ln(factor) + 1).
        truncate: whether the two ends of the ramp are rounded outward to whole pairs.

    Raises:
        TypeError: an argument is no number.
        ValueError: an argument is out of its range, or one of the mscales is missing.

    >>> scaling = YaRN(4.0, original_length=4096)
    >>> round(scaling.amplitude, 4)
    1.1386
    >>> plain, scaled = Linear(1.0).frequencies(64, 10_000.0), scaling.frequencies(64, 10_000.0)
    >>> scaled[0] == plain[0], scaled[-1] == plain[-1] / 4
    (True, True)
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        checked_count("original_length", self.original_length)
        for name in ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"):
            if getattr(self, name) is not None:
                _check_positive(name, getattr(self, name))
        if self.beta_slow >= self.beta_fast:
            raise mismatch("beta_slow", self.beta_slow, f"less than beta_fast={self.beta_fast}", "swap them?")
        if (self.mscale is None) != (self.mscale_all_dim is None):
            raise ValueError("mscale and mscale_all_dim are the two parts of one quotient: give both or neither.")

    @property
    def amplitude(self) -> float:
        """0.1 · ln(factor) + 1, unless something else was asked for."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale is None or self.mscale_all_dim is None:
            return self._sharper(1.0)
        return self._sharper(self.mscale) / self._sharper(self.mscale_all_dim)

    def _sharper(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1.0

    def frequencies(self, dim: int, base: float) -> tuple[float, ...]:
        """Between the plain ones and those of :class:`Linear`."""
        start, stop = self._ramp(dim, base)
        shares = (min(max((pair - start) / (stop - start), 0.0), 1.0) for pair in range(dim // 2))
        return tuple(
            frequency * (1 - share) + frequency / self.factor * share
            for frequency, share in zip(geometric_frequencies(dim, base), shares, strict=True)
        )

    def _ramp(self, dim: int, base: float) -> tuple[float, float]:
        """The pairs between which interpolation sets in."""
        start, stop = (
            dim * math.log(self.original_length / (2 * math.pi * turns)) / (2 * math.log(base))
            for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            start, stop = float(math.floor(start)), float(math.ceil(stop))
        start, stop = max(start, 0.0), min(stop, dim - 1.0)
        return start, stop if stop != start else stop + 0.001


@dataclass(frozen=True)
class Llama3(Scaling):
    r"""Pairs are kept, interpolated or mixed by their wavelength λ = 2π/θ.

    .. math:: \theta_i' = (1 - m) \, \theta_i / factor + m \, \theta_i, \quad
              m = \mathrm{clamp}\Big(\frac{L_0 / \lambda_i - low}{high - low}, 0, 1\Big)

    Source: the released code of Llama 3.1 (Grattafiori et al. 2024), whose values are the defaults.

    Args:
        factor: how many times longer texts become.
        low_frequency: pairs that turn less often than this in L₀ tokens are interpolated.
        high_frequency: pairs that turn more often are kept.
        original_length: tokens of the texts that the model learned from, L₀.

    Raises:
        TypeError: an argument is no number.
        ValueError: an argument is out of its range.

    >>> plain, scaled = (scaling.frequencies(64, 500_000.0) for scaling in (Linear(1.0), Llama3()))
    >>> scaled[0] == plain[0], scaled[-1] == plain[-1] / 8
    (True, True)
    """

    factor: float = 8.0
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    original_length: int = 8192

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        checked_count("original_length", self.original_length)
        for name in ("low_frequency", "high_frequency"):
            _check_positive(name, getattr(self, name))
        if self.low_frequency >= self.high_frequency:
            expected = f"less than high_frequency={self.high_frequency}"
            raise mismatch("low_frequency", self.low_frequency, expected, "swap them?")

    def frequencies(self, dim: int, base: float) -> tuple[float, ...]:
        """Between the plain ones and those of :class:`Linear`."""
        return tuple(self._mixed(frequency) for frequency in geometric_frequencies(dim, base))

    def _mixed(self, frequency: float) -> float:
        turns = self.original_length * frequency / (2 * math.pi)
        kept = (turns - self.low_frequency) / (self.high_frequency - self.low_frequency)
        kept = min(max(kept, 0.0), 1.0)
        return (1 - kept) * frequency / self.factor + kept * frequency


def _check_factor(factor: float) -> None:
    checked_number("factor", factor)
    if not 1 <= factor < math.inf:
        raise mismatch("factor", factor, "a number of at least 1", "it says how many times longer texts become.")


def _check_positive(name: str, value: float) -> None:
    checked_number(name, value)
    if not 0 < value < math.inf:
        raise mismatch(name, value, "a positive number", "leave it out for the published value.")
