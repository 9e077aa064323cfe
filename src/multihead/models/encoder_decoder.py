"""The Transformer of Vaswani et al. 2017: an encoder reads a source, a decoder writes a target."""

from jaxtyping import Bool, Float, Int
from torch import Tensor

from multihead.models.config import Config
from multihead.models.decoder import Decoder
from multihead.models.encoder import Encoder
from multihead.models.model import Model

__all__ = ["EncoderDecoder"]


class EncoderDecoder(Model):
    """A source and the target so far to the logits of the target's next token (Vaswani et al. 2017, figure 1).

    Args:
        config: sizes and parts; with no ``target_vocab_size`` one table of embeddings serves the source, the target
            and, if tied, the logits (section 3.4).

    Raises:
        ValueError: the configuration has no encoder or no decoder.

    Attention stands in three places (section 3.2.3): ``encoder.blocks.0.attention``, ``decoder.blocks.0.attention``
    and ``decoder.blocks.0.cross_attention`` are the first of each.

    >>> import torch
    >>> from multihead.models import Config, EncoderDecoder
    >>> config = Config(vocab_size=11, embed_dim=12, num_heads=3, encoder_layers=2, decoder_layers=2)
    >>> source, target = torch.tensor([[3, 1, 4, 1, 5]]), torch.tensor([[9, 2, 6]])
    >>> EncoderDecoder(config)(source, target).shape
    torch.Size([1, 3, 11])
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config, cross=True, tokens=self.encoder.embedding.tokens)

    def forward(
        self,
        source: Int[Tensor, "batch key"],
        target: Int[Tensor, "batch token"],
        *,
        source_valid: Bool[Tensor, "batch key"] | None = None,
        target_valid: Bool[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch token vocab"]:
        """The logits of the target's token after each, (batch, target tokens, vocabulary).

        Args:
            source: (batch, source tokens).
            target: (batch, target tokens), a token that says "begin" first.
            source_valid: (batch, source tokens), True at real tokens; None: all are.
            target_valid: likewise of the target; padding after it needs none, because nothing before it sees it.

        Raises:
            ValueError, TypeError: tensors that do not belong together; the message says which and how.
        """
        context = self.encoder(source, valid=source_valid)
        return self.decoder(target, context, valid=target_valid, context_valid=source_valid)
