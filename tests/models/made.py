"""Small models of every kind for the tests, with weights so large that nothing in them is nearly zero."""

import torch
from torch import Tensor

from multihead.models import Config, Decoder, EncoderDecoder

VOCABULARY = 13
POSITIONS = ("sinusoidal", "learned", "rotary", "alibi", "t5", "none")


def config(**changes) -> Config:
    """Sizes that no two axes share."""
    sizes = {
        "vocab_size": VOCABULARY,
        "embed_dim": 24,
        "num_heads": 6,
        "num_kv_heads": 3,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "feedforward_dim": 17,
        "tied_embeddings": False,
        "dropout": 0.0,
    }
    if changes.get("position") == "learned":
        sizes["max_length"] = 29
    return Config(**(sizes | changes))


def randomised(model, *, seed: int = 0):
    """The model with parameters drawn anew, so that logits differ from token to token; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            width = parameter.shape[-1] if parameter.ndim > 1 else 1
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(1.5 * noise / width**0.5)
            else:
                parameter.add_(0.1 * noise)
    return model.eval()


def decoder(*, seed: int = 0, **changes) -> Decoder:
    model = randomised(Decoder(config(**changes)), seed=seed)
    return centred(model, model, model.hidden(tokens(7, 11, seed=9) % model.vocab_size))


def encoder_decoder(*, seed: int = 0, **changes) -> EncoderDecoder:
    model = randomised(EncoderDecoder(config(**changes)), seed=seed)
    context = model.encoder(tokens(7, 5, seed=10) % model.config.vocab_size)
    return centred(
        model, model.decoder, model.decoder.hidden(tokens(7, 11, seed=9) % model.decoder.vocab_size, context)
    )


@torch.no_grad()
def centred(model, decoder: Decoder, hidden: Tensor):
    """The model with logits that do not see what all places share: else it would write one token for ever."""
    if decoder.output is not None:
        mean = hidden.mean((0, 1))
        decoder.output.weight -= torch.outer(decoder.output.weight @ mean, mean) / (mean @ mean)
    return model


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def lengths(longest: int, *counts: int, left: bool = False) -> Tensor:
    """Rows of ``longest`` places with so many real tokens each."""
    places = torch.arange(longest)
    limits = torch.tensor(counts)[:, None]
    return places >= longest - limits if left else places < limits
