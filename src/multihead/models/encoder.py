"""The encoder: every token sees every other."""

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from multihead.conventions import mismatch
from multihead.masks import padding
from multihead.models.block import Block, norm_of, position_of
from multihead.models.config import Config
from multihead.models.embedding import Embedding, check_tokens, check_valid
from multihead.models.model import Model

__all__ = ["Encoder"]


class Encoder(Model):
    """Tokens to features in which every token has seen every other (Vaswani et al. 2017, section 3.1).

    Args:
        config: sizes and parts; ``encoder_layers`` blocks.

    Raises:
        ValueError: the configuration has no encoder.

    For classification put a linear layer on the features of the first token, or on their mean.

    >>> import torch
    >>> from multihead.models import Config, Encoder
    >>> encoder = Encoder(Config(vocab_size=11, embed_dim=12, num_heads=3, encoder_layers=2, feedforward_dim=16))
    >>> encoder(torch.tensor([[3, 1, 4, 1, 5]])).shape
    torch.Size([1, 5, 12])
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if not config.encoder_layers:
            raise mismatch("encoder_layers", 0, "a positive number", "the configuration is that of a decoder alone.")
        self.embedding = Embedding(config, config.vocab_size)
        position = position_of(config, causal=False)
        self.blocks = nn.ModuleList(Block(config, position=position) for _ in range(config.encoder_layers))
        self.norm = norm_of(config) if config.norm_first else nn.Identity()

    def forward(
        self, tokens: Int[Tensor, "batch token"], *, valid: Bool[Tensor, "batch token"] | None = None
    ) -> Float[Tensor, "batch token embed"]:
        """The features of each token, (batch, tokens, embed_dim).

        Args:
            tokens: (batch, tokens).
            valid: (batch, tokens), True at real tokens and False at padding, before or after them; None: all are real.

        Raises:
            ValueError, TypeError: tokens that are not in the vocabulary, or a ``valid`` that does not fit them.
        """
        check_tokens("tokens", tokens, self.config.vocab_size)
        check_valid("valid", valid, tokens)
        mask = None if valid is None else padding(valid)
        x = self.embedding(tokens, valid)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)
