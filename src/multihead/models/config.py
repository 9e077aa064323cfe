"""What a model is made of: one frozen dataclass of plain words and numbers, to and from JSON."""

import dataclasses
import json
import math
import typing
from dataclasses import dataclass
from typing import Literal

from multihead.conventions import divisors, in_words, mismatch, nearest
from multihead.core import check_heads

__all__ = ["Config"]

Activation = Literal["relu", "gelu", "swiglu"]
Norm = Literal["layer", "rms"]
PositionName = Literal["sinusoidal", "learned", "rotary", "alibi", "t5", "none"]

_CHOICES = {
    "activation": typing.get_args(Activation),
    "norm": typing.get_args(Norm),
    "position": typing.get_args(PositionName),
}
_COUNTS = ("vocab_size", "target_vocab_size", "embed_dim", "num_heads", "num_kv_heads", "head_dim", "feedforward_dim")
_POSITIVE = ("norm_eps", "rotary_base", "softcap")
_LARGEST = 1 << 31
# ten times the deepest Transformer that anybody reported (Wang et al. 2022): what a file says must not build for hours
_DEEPEST = 10_000
_PROBABILITIES = ("dropout", "attention_dropout")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The sizes and the parts of a model; the defaults are the "base" model of Vaswani et al. 2017, table 3.

    Change one with :func:`dataclasses.replace`.

    Raises:
        ValueError: numbers that do not belong together; the message says which would.
        TypeError: a value of another type, as a hand-written file may hold.

    >>> from dataclasses import replace
    >>> from multihead.models import Config
    >>> small = replace(Config.base(vocab_size=1000), embed_dim=64, num_heads=4, feedforward_dim=256)
    >>> Config.from_json(small.to_json()) == small
    True
    """

    vocab_size: int
    """Tokens that the model knows; of an encoder-decoder's source."""
    target_vocab_size: int | None = None
    """Tokens of an encoder-decoder's target; None: one vocabulary, and so one table of embeddings, for both."""
    embed_dim: int = 512
    """Features of a token between the blocks, d."""
    encoder_layers: int = 6
    """Blocks of the encoder; 0 where there is none."""
    decoder_layers: int = 6
    """Blocks of the decoder; 0 where there is none."""
    num_heads: int = 8
    """Query heads of every attention."""
    num_kv_heads: int | None = None
    """Key/value heads, a divisor of ``num_heads``; None: as many (Ainslie et al. 2023 for fewer)."""
    head_dim: int | None = None
    """Features of a head; None: ``embed_dim // num_heads``."""
    feedforward_dim: int = 2048
    """Features between the two layers of the feed-forward network."""
    activation: Activation = "relu"
    """``relu``, ``gelu`` (Hendrycks & Gimpel 2016) or ``swiglu`` (Shazeer 2020, equation 6)."""
    norm: Norm = "layer"
    """``layer`` (Ba et al. 2016) or ``rms`` (Zhang & Sennrich 2019)."""
    norm_first: bool = False
    """Whether a norm stands before each part of a block (pre-norm) rather than after the sum (post-norm)."""
    norm_eps: float = 1e-5
    """Added to the variance in every norm."""
    bias: bool = True
    """Whether linear layers add a bias."""
    position: PositionName = "sinusoidal"
    """How tokens get their order: ``sinusoidal`` and ``learned`` are added to the embeddings, ``rotary`` turns queries
    and keys, ``alibi`` and ``t5`` are added to the scores of self-attention; see :mod:`multihead.positions`."""
    max_length: int | None = None
    """Tokens that there are learned positions for; needed with ``learned`` and of no use without."""
    rotary_base: float = 10_000.0
    """The base of rotary frequencies (Su et al. 2021)."""
    scale_embeddings: bool = True
    """Whether embeddings are multiplied by √d (Vaswani et al. 2017, section 3.4)."""
    tied_embeddings: bool = True
    """Whether the logits are inner products with the embeddings themselves (Press & Wolf 2017)."""
    dropout: float = 0.1
    """Probability of dropping a feature of each part's output and of the embeddings (section 5.4)."""
    attention_dropout: float = 0.0
    """Probability of dropping an attention weight; the paper drops none."""
    qk_norm: bool = False
    """Whether queries and keys of each head are normalised (Henry et al. 2020)."""
    output_gate: bool = False
    """Whether a sigmoid gate of the layer's input multiplies the heads' outputs (Qiu et al. 2025)."""
    softcap: float | None = None
    """c > 0 keeps attention scores within -c and c (Gemma 2)."""
    sinks: bool = False
    """Whether each head learns a score for a key without a value (gpt-oss)."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _of_type(field.name, getattr(self, field.name), hints[field.name])
            object.__setattr__(self, field.name, value)
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and not 1 <= value < _LARGEST:
                raise mismatch(name, value, "a positive number below 2^31", "it counts tokens, heads or features.")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise mismatch(name, value, "a positive number", "None or the default does without.")
        for name in _PROBABILITIES:
            if not 0.0 <= getattr(self, name) < 1.0:
                raise mismatch(name, getattr(self, name), "a probability below 1", "0 drops nothing.")
        self._check_heads()
        self._check_position()
        self._check_layers()

    def _check_heads(self) -> None:
        if self.num_kv_heads is not None:
            check_heads(self.num_heads, self.num_kv_heads)
        if self.head_dim is None and self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim={self.embed_dim} does not split into num_heads={self.num_heads}: "
                f"try {in_words(divisors(self.embed_dim), 'or')} heads, or give head_dim."
            )

    def _check_position(self) -> None:
        if self.position == "learned" and (self.max_length is None or self.max_length < 1):
            raise mismatch("max_length", self.max_length, "a positive number", "learned positions are as many.")
        if self.position != "learned" and self.max_length is not None:
            raise ValueError(
                f"max_length={self.max_length} is for learned positions, and position={self.position!r} has no limit: "
                "leave it out."
            )
        if self.position == "rotary" and self.width_of_head % 2:
            raise mismatch("head_dim", self.width_of_head, "an even number", "rotary positions turn pairs of features.")
        if self.position == "sinusoidal" and self.embed_dim % 2:
            raise mismatch("embed_dim", self.embed_dim, "an even number", "each frequency has a sine and a cosine.")

    def _check_layers(self) -> None:
        for name in ("encoder_layers", "decoder_layers"):
            if not 0 <= getattr(self, name) <= _DEEPEST:
                raise mismatch(name, getattr(self, name), f"0 to {_DEEPEST} blocks", "0 where there is none.")

    @property
    def width_of_head(self) -> int:
        """Features of a head, given or not."""
        return self.embed_dim // self.num_heads if self.head_dim is None else self.head_dim

    @classmethod
    def base(cls, vocab_size: int) -> "Config":
        """The "base" Transformer of Vaswani et al. 2017, table 3: 512 features, 8 heads, 6 + 6 blocks.

        Feed-forward networks of 2048 features with ReLU, post-norm, sinusoidal positions, dropout 0.1, and one table
        of embeddings for source, target and logits, scaled by √512 (section 3.4).

        >>> Config.base(37_000).width_of_head
        64
        """
        return cls(vocab_size=vocab_size)

    @classmethod
    def llama(cls, vocab_size: int = 32_000) -> "Config":
        """A causal language model like Llama 2 7B (Touvron et al. 2023): 4096 features, 32 heads, 32 blocks.

        RMSNorm before each part, SwiGLU, rotary positions, no biases, no dropout, and logits with their own weights.
        With other sizes, and with fewer ``num_kv_heads``, it is the family that followed.
        """
        return cls(
            vocab_size=vocab_size,
            embed_dim=4096,
            encoder_layers=0,
            decoder_layers=32,
            num_heads=32,
            feedforward_dim=11_008,
            activation="swiglu",
            norm="rms",
            norm_first=True,
            bias=False,
            position="rotary",
            scale_embeddings=False,
            tied_embeddings=False,
            dropout=0.0,
        )

    def to_json(self) -> str:
        """As JSON text, one line for each field."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """The configuration that :meth:`to_json` wrote; fields that are left out have their defaults.

        Raises:
            ValueError: it is no JSON, or its numbers do not belong together.
            TypeError: it is no object, or a value is of another type.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"this is no JSON: {error}.") from None
        return cls.from_values(values)

    @classmethod
    def from_values(cls, values: object) -> "Config":
        """The configuration of a JSON object's values; see :meth:`from_json`."""
        if not isinstance(values, dict):
            raise TypeError(f"a configuration is a JSON object of names and values, not {_named(values)}.")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = next((name for name in values if name not in fields), None)
        if unknown is not None:
            near = nearest(str(unknown), fields) or list(fields)
            raise ValueError(f"{str(unknown)[:80]!r} is no field of a configuration: did you mean {near[0]}?")
        if "vocab_size" not in values:
            raise ValueError("vocab_size is missing: it says how many tokens the model knows.")
        return cls(**values)


def _of_type(name: str, value: object, hint: object) -> object:
    """``value`` if it is what a field takes; whole numbers stand for floats too."""
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise ValueError(f"{name}={str(value)[:80]!r} is none of {in_words(map(repr, _CHOICES[name]))}.")
        return value
    kinds = typing.get_args(hint) or (hint,)
    if type(value) is int and float in kinds and abs(value) < _LARGEST:
        return float(value)
    if type(value) not in kinds:
        words = in_words((getattr(kind, "__name__", "").replace("NoneType", "None") for kind in kinds), "or")
        raise TypeError(f"{name} is {_named(value)}, expected {words}.")
    return value


def _named(value: object) -> str:
    """A value and its type, shortened: it may come from a file."""
    return f"{str(value)[:80]!r} of type {type(value).__name__}"
