"""The decoder: every token sees those before it, and in an encoder-decoder the source too."""

import os  # noqa: TC003
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from multihead.conventions import mismatch, shape_of
from multihead.layer import Cache, GrowingCache, KeysValues
from multihead.layer.parts import start_linear
from multihead.masks import Mask, causal, padding
from multihead.models.block import Block, norm_of, position_of
from multihead.models.config import Config
from multihead.models.embedding import Embedding, check_tokens, check_valid
from multihead.models.model import Model

__all__ = ["Decoder", "State"]


@dataclass(eq=False)
class State:
    """What a decoder keeps between calls, so that a step computes one token; :meth:`Decoder.start` makes it.

    Memory: the keys and values of every token so far, and of the source, in each block.
    """

    caches: list[Cache]
    """One for each block's self-attention."""
    contexts: list[KeysValues]
    """The source as each block's cross-attention sees it, projected once; empty without a source."""
    context_valid: Bool[Tensor, "batch key"] | None = None
    valid: Bool[Tensor, "batch read"] | None = None
    """Which tokens so far are real; None: all."""

    @property
    def length(self) -> int:
        """Tokens read so far, padding included."""
        return self.caches[0].length

    def reorder(self, index: Int[Tensor, " sequence"]) -> None:
        """Let sequence i go on from what is now sequence ``index[i]``; the batch may grow or shrink."""
        for cache in self.caches:
            cache.reorder(index)
        self.contexts = [replace(context, k=context.k[index], v=context.v[index]) for context in self.contexts]
        self.context_valid = None if self.context_valid is None else self.context_valid[index]
        self.valid = None if self.valid is None else self.valid[index]


class Decoder(Model):
    """Tokens to the logits of the token after each: a causal language model, or the half of an encoder-decoder.

    Args:
        config: sizes and parts; ``decoder_layers`` blocks.
        cross: whether its blocks attend to a source too, as in an :class:`EncoderDecoder`.
        tokens: a table of embeddings to share; None: one of its own.

    Raises:
        ValueError: the configuration has no decoder.

    >>> import torch
    >>> from multihead.models import Config, Decoder
    >>> decoder = Decoder(Config(vocab_size=11, embed_dim=12, num_heads=3, decoder_layers=2, feedforward_dim=16))
    >>> decoder(torch.tensor([[3, 1, 4, 1, 5]])).shape
    torch.Size([1, 5, 11])
    """

    def __init__(self, config: Config, *, cross: bool = False, tokens: nn.Embedding | None = None) -> None:
        super().__init__(config)
        if not config.decoder_layers:
            raise mismatch("decoder_layers", 0, "a positive number", "the configuration is that of an encoder alone.")
        self.vocab_size, self.cross = config.vocab_size, cross
        if cross and config.target_vocab_size is not None:
            # another vocabulary, and so a table of its own
            self.vocab_size, tokens = config.target_vocab_size, None
        self.embedding = Embedding(config, self.vocab_size, tokens)
        position = position_of(config, causal=True)
        self.blocks = nn.ModuleList(Block(config, cross=cross, position=position) for _ in range(config.decoder_layers))
        self.norm = norm_of(config) if config.norm_first else nn.Identity()
        self.output = None if config.tied_embeddings else nn.Linear(config.embed_dim, self.vocab_size, bias=False)
        if self.output is not None:
            start_linear(self.output)

    def forward(
        self,
        tokens: Int[Tensor, "batch token"],
        context: Float[Tensor, "batch key embed"] | None = None,
        *,
        valid: Bool[Tensor, "batch token"] | None = None,
        context_valid: Bool[Tensor, "batch key"] | None = None,
        state: State | None = None,
        last_only: bool = False,
    ) -> Float[Tensor, "batch asked vocab"]:
        """The logits of the token after each, (batch, tokens, vocabulary).

        Args:
            tokens: (batch, tokens).
            context: what the encoder made of the source, (batch, keys, embed_dim).
            valid: (batch, tokens), True at real tokens; None: all are. Padding *after* a text needs no ``valid``,
                because nothing before it sees it; padding before it does.
            context_valid: (batch, keys), likewise of the source.
            state: what earlier calls read, which these tokens follow; it holds the source too. See :meth:`start`.
            last_only: the logits after the last token only, (batch, 1, vocabulary): all that a prompt is read for.

        Raises:
            ValueError, TypeError: tensors that do not belong together; the message says which and how.
        """
        hidden = self.hidden(tokens, context, valid=valid, context_valid=context_valid, state=state)
        return self.logits(hidden[:, -1:] if last_only else hidden)

    def hidden(
        self,
        tokens: Int[Tensor, "batch token"],
        context: Float[Tensor, "batch key embed"] | None = None,
        *,
        valid: Bool[Tensor, "batch token"] | None = None,
        context_valid: Bool[Tensor, "batch key"] | None = None,
        state: State | None = None,
    ) -> Float[Tensor, "batch token embed"]:
        """The features from which :meth:`logits` come; as :meth:`forward`."""
        check_tokens("tokens", tokens, self.vocab_size)
        check_valid("valid", valid, tokens)
        if state is None:
            self._check_context(context, context_valid)
            contexts: list[Tensor | KeysValues | None] = [context] * len(self.blocks)
            caches: list[Cache | None] = [None] * len(self.blocks)
            before = 0
        else:
            if context is not None or context_valid is not None:
                raise ValueError("a state came beside a context: it holds its own since start(context, ...).")
            before = state.length
            contexts = [*state.contexts] or [None] * len(self.blocks)
            caches = [*state.caches]
            valid, context_valid = _all_so_far(state, valid, tokens), state.context_valid
        mask = _seen(valid, tokens.shape[1])
        context_mask = None if context_valid is None else padding(context_valid)
        x = self.embedding(tokens, valid, before=before)
        for block, source, cache in zip(self._every_block(), contexts, caches, strict=True):
            x = block(x, mask, context=source, context_mask=context_mask, cache=cache)
        if state is not None:
            # a call that was refused has read nothing
            state.valid = valid
        return self.norm(x)

    def logits(self, hidden: Float[Tensor, "batch asked embed"]) -> Float[Tensor, "batch asked vocab"]:
        """The logits of features: inner products with the embeddings, or a linear layer's."""
        return F.linear(hidden, self.embedding.tokens.weight) if self.output is None else self.output(hidden)

    def start(
        self,
        context: Float[Tensor, "batch key embed"] | None = None,
        *,
        context_valid: Bool[Tensor, "batch key"] | None = None,
    ) -> State:
        """A state that has read nothing yet, for calls that follow each other.

        Its caches keep no gradients: call the decoder under ``torch.no_grad()`` or ``torch.inference_mode()``.

        >>> import torch
        >>> from multihead.models import Config, Decoder
        >>> decoder = Decoder(Config(vocab_size=11, embed_dim=12, num_heads=3, decoder_layers=2, dropout=0.0))
        >>> state = decoder.start()
        >>> with torch.no_grad():
        ...     steps = [decoder(torch.tensor([[token]]), state=state) for token in (3, 1, 4)]
        ...     whole = decoder(torch.tensor([[3, 1, 4]]))
        >>> torch.allclose(torch.cat(steps, 1), whole, atol=1e-5)
        True
        """
        self._check_context(context, context_valid)
        contexts = [] if context is None else [block.keys_values(context) for block in self._every_block()]
        return State([GrowingCache() for _ in self.blocks], contexts, context_valid)

    def _every_block(self) -> Iterator[Block]:
        # nn.ModuleList forgets of what kind its modules are
        return cast("Iterator[Block]", iter(self.blocks))

    def save(self, folder: "str | os.PathLike[str]") -> None:
        """As :meth:`Model.save`; half of an encoder-decoder is refused, since it does nothing alone."""
        if self.cross:
            raise ValueError("this decoder is half of an encoder-decoder: save the whole model.")
        super().save(folder)

    def _check_context(self, context: Tensor | None, context_valid: Tensor | None) -> None:
        if self.cross and context is None:
            raise ValueError("context is None: this decoder attends to what an encoder made of a source.")
        if not self.cross and (context is not None or context_valid is not None):
            raise ValueError("a context came, but this decoder has no cross-attention: make an EncoderDecoder.")
        if context is None:
            return
        width = self.config.embed_dim
        if context.ndim != 3 or context.shape[-1] != width:
            raise ValueError(f"context has shape {shape_of(context)}, expected (batch, keys, {width}).")
        check_valid("context_valid", context_valid, context[..., 0])


def _seen(valid: Tensor | None, tokens: int) -> Mask | None:
    """Which of all tokens so far the last ``tokens`` see: the real ones up to their own place."""
    if tokens == 1:
        # the newest token sees everything, so there is nothing to say about order
        return None if valid is None else padding(valid)
    return causal() if valid is None else causal() & padding(valid)


def _all_so_far(state: State, valid: Tensor | None, tokens: Tensor) -> Tensor | None:
    """Which tokens are real, those before included; None where all are."""
    if valid is None and state.valid is None:
        return None
    batch = tokens.shape[0]
    before = state.valid
    if before is None:
        before = torch.ones(batch, state.length, dtype=torch.bool, device=tokens.device)
    if before.shape[0] != batch:
        raise ValueError(f"tokens have batch {batch} but the state {before.shape[0]}: state.reorder(index) changes it.")
    return torch.cat([before, torch.ones_like(tokens, dtype=torch.bool) if valid is None else valid], 1)
