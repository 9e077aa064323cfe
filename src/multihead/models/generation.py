"""What a model writes: token after token, each step over what earlier steps have computed.

The prompt is read once; then each step computes one token over the caches, so that a step costs what it must: the
weights once, and the keys and values of the tokens so far. What the encoder made of the source is projected once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multihead.conventions import kind_of
from multihead.models.beams import search
from multihead.models.choices import Beam, Choice, Greedy
from multihead.models.decoder import Decoder
from multihead.models.encoder_decoder import EncoderDecoder
from multihead.models.writing import Writing

__all__ = ["Generated", "generate", "stream"]


@dataclass(frozen=True, eq=False)
class Generated:
    """What was written, row by row."""

    tokens: Int[Tensor, "batch token"]
    """Without the prompt; behind a row's end its stop token stands again."""
    lengths: Int[Tensor, " batch"]
    """Tokens of each row before its stop token, if it came to one."""
    log_probabilities: Float[Tensor, " batch"]
    """Of each row's tokens, its stop token included, as the model sees it: before temperature, top-k and top-p."""

    def rows(self) -> list[list[int]]:
        """Each row's tokens without its stop token."""
        return [row[:length] for row, length in zip(self.tokens.tolist(), self.lengths.tolist(), strict=True)]


def generate(
    model: Decoder | EncoderDecoder,
    prompt: Int[Tensor, "batch token"],
    *,
    max_new_tokens: int,
    stop: Sequence[int] = (),
    choice: Choice | Beam = Greedy(),  # noqa: B008
    valid: Bool[Tensor, "batch token"] | None = None,
    source: Int[Tensor, "batch key"] | None = None,
    source_valid: Bool[Tensor, "batch key"] | None = None,
    generator: torch.Generator | None = None,
) -> Generated:
    """Let a model write on.

    Args:
        model: a decoder, or an encoder-decoder with a ``source``.
        prompt: what the decoder reads first, (batch, tokens); of an encoder-decoder usually one token for "begin".
        max_new_tokens: the most tokens to write.
        stop: tokens that end a row. The other rows go on until all have ended.
        choice: :class:`Greedy`, :class:`Sample` or :class:`Beam`.
        valid: (batch, tokens), True at the real tokens of prompts of different lengths, wherever the padding stands.
        source: what the encoder reads, (batch, source tokens).
        source_valid: (batch, source tokens), True at real tokens.
        generator: of random numbers for :class:`Sample`, on the model's device; the same seed draws the same tokens.

    Returns:
        The tokens written. The model is run in evaluation mode and without gradients, and left as it was.

    Raises:
        ValueError, TypeError: arguments that do not belong together; the message says which and how.

    >>> import torch
    >>> from multihead.models import Config, Decoder, Sample, generate
    >>> decoder = Decoder(Config(vocab_size=11, embed_dim=12, num_heads=3, decoder_layers=2))
    >>> prompt = torch.tensor([[3, 1, 4]])
    >>> generate(decoder, prompt, max_new_tokens=5).tokens.shape
    torch.Size([1, 5])
    >>> warm, seed = Sample(temperature=0.8, top_p=0.9), torch.Generator().manual_seed(0)
    >>> len(generate(decoder, prompt, max_new_tokens=5, choice=warm, generator=seed).rows()[0])
    5
    """
    _check_choice(choice)
    writing = Writing(
        model, prompt, max_new_tokens=max_new_tokens, stop=stop, valid=valid, source=source, source_valid=source_valid
    )
    if isinstance(choice, Beam):
        with writing.computing():
            found = search(writing, choice)
        # outside inference mode a clone is an ordinary tensor again, which a gradient may pass by
        tokens, log_probabilities = (tensor.clone() for tensor in found)
    else:
        steps = list(_steps(writing, choice, generator))
        tokens = torch.stack([step for step, _ in steps], 1)
        log_probabilities = steps[-1][1]
    before_stop = torch.isin(tokens, writing.stop).cumsum(1) == 0
    return Generated(tokens, before_stop.sum(1), log_probabilities)


def stream(
    model: Decoder | EncoderDecoder,
    prompt: Int[Tensor, "batch token"],
    *,
    max_new_tokens: int,
    stop: Sequence[int] = (),
    choice: Choice = Greedy(),  # noqa: B008
    valid: Bool[Tensor, "batch token"] | None = None,
    source: Int[Tensor, "batch key"] | None = None,
    source_valid: Bool[Tensor, "batch key"] | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Int[Tensor, " batch"]]:
    """As :func:`generate`, each token when it is written: (batch,) tokens at a time, a row's stop token to the end.

    The next token is computed when it is asked for, and between two tokens the model is as it was before.

    Raises:
        ValueError, TypeError: as :func:`generate`, at once; a :class:`Beam` knows its tokens only at the end.
    """
    if isinstance(choice, Beam):
        raise TypeError("a beam search knows its tokens only at the end: call generate, or stream with Sample().")
    _check_choice(choice)
    writing = Writing(
        model, prompt, max_new_tokens=max_new_tokens, stop=stop, valid=valid, source=source, source_valid=source_valid
    )
    return (tokens for tokens, _ in _steps(writing, choice, generator))


def _steps(
    writing: Writing, choice: Choice, generator: torch.Generator | None
) -> Iterator[tuple[Int[Tensor, " batch"], Float[Tensor, " batch"]]]:
    """Each step's tokens, and the log-probability of each row so far."""
    tokens, total, ended = writing.beginning()
    for number in range(1, writing.max_new_tokens + 1):
        with writing.computing():
            logits = writing.read() if number == 1 else writing.go_on(tokens)
            chosen = choice.choose(logits, generator)
            found = logits.float().log_softmax(-1).gather(-1, chosen[:, None]).squeeze(-1)
            tokens, total = torch.where(ended, tokens, chosen), total + found.masked_fill(ended, 0.0)
            ended = torch.isin(tokens, writing.stop)
            finished = number == writing.max_new_tokens or bool(ended.all())
        # outside inference mode a clone is an ordinary tensor again, which a gradient may pass by
        yield tokens.clone(), total.clone()
        if finished:
            return


def _check_choice(choice: object) -> None:
    if not isinstance(choice, Choice | Beam):
        raise TypeError(f"choice is {kind_of(choice)}, expected an object: Greedy(), Sample(...) or Beam(...).")
