"""Tokens a second on a cache of 4,096 tokens, beside transformers' ``generate`` with the same weights.

Both read the prompt, then write greedily; the time counts from the first written token to the last. Target: at least
1.2 × as many.
"""

import statistics
import time
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.measuring import table
from multihead.models import Config, Decoder, stream
from tests.accuracy import check

WIDTH, HEADS, LAYERS, FEEDFORWARD, VOCABULARY = 512, 8, 4, 1408, 4096
CONTEXT, WRITTEN, ROUNDS = 4096, 48, 2


def models(kv_heads: int) -> tuple[torch.nn.Module, Decoder]:
    """transformers' Llama, and ours with its weights."""
    import transformers

    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=FEEDFORWARD,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=kv_heads,
            rms_norm_eps=1e-5,
            max_position_embeddings=2 * CONTEXT,
            tie_word_embeddings=False,
            initializer_range=0.05,
            eos_token_id=None,
            pad_token_id=0,
        )
    ).eval()
    config = replace(
        Config.llama(VOCABULARY),
        embed_dim=WIDTH,
        num_heads=HEADS,
        num_kv_heads=kv_heads,
        decoder_layers=LAYERS,
        feedforward_dim=FEEDFORWARD,
    )
    ours = Decoder(config).eval()
    ours.load_state_dict({_ours(name): value for name, value in theirs.state_dict().items()})
    return theirs, ours


def _ours(name: str) -> str:
    """Our name of one of transformers' parameters."""
    for old, new in (
        ("model.embed_tokens", "embedding.tokens"),
        ("lm_head", "output"),
        ("model.norm", "norm"),
        ("model.layers", "blocks"),
        ("self_attn.o_proj", "attention.out_proj"),
        ("self_attn", "attention"),
        ("mlp", "feedforward"),
        ("input_layernorm", "attention_norm"),
        ("post_attention_layernorm", "feedforward_norm"),
    ):
        name = name.replace(old, new)
    return name


class Clock:
    """Notes when each token comes; a streamer for transformers."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to note."""

    def tokens_a_second(self, batch: int) -> float:
        """From the first written token to the last."""
        first, *_, last = self.times[-WRITTEN:]
        return batch * (WRITTEN - 1) / (last - first)


def rates(batch: int, kv_heads: int) -> dict[str, float]:
    """Median tokens a second of both, in alternation."""
    theirs, ours = models(kv_heads)
    prompt = torch.randint(1, VOCABULARY, (batch, CONTEXT), generator=torch.Generator().manual_seed(1))
    right(theirs, ours, prompt[:, :97])

    def by_theirs() -> float:
        clock = Clock()
        everything = torch.ones_like(prompt)
        theirs.generate(
            prompt, attention_mask=everything, max_new_tokens=WRITTEN, do_sample=False, use_cache=True, streamer=clock
        )
        return clock.tokens_a_second(batch)

    def by_ours() -> float:
        clock = Clock()
        for tokens in stream(ours, prompt, max_new_tokens=WRITTEN):
            clock.put(tokens)
        return clock.tokens_a_second(batch)

    found: dict[str, list[float]] = {"transformers": [], "multihead": []}
    for _ in range(ROUNDS):
        found["transformers"].append(by_theirs())
        found["multihead"].append(by_ours())
    return {name: statistics.median(several) for name, several in found.items()}


def right(theirs: torch.nn.Module, ours: Decoder, prompt: Tensor) -> None:
    """Refuse to time what is wrong: equal logits, and equal texts."""
    with torch.no_grad():
        exact = ours.double()(prompt)
        check(ours.float()(prompt), exact, theirs(prompt).logits, "logits")
    written = torch.stack(list(stream(ours, prompt, max_new_tokens=9)), 1)
    expected = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=9, do_sample=False)
    if not torch.equal(written, expected[:, prompt.shape[1] :]):
        raise AssertionError("the two models write different texts")


def run() -> str:
    """The table."""
    rows = []
    for kv_heads in (8, 2):
        for batch in (1, 8):
            found = rates(batch, kv_heads)
            ratio = found["multihead"] / found["transformers"]
            rows.append((batch, kv_heads, *(f"{rate:.0f}" for rate in found.values()), f"{ratio:.2f} ×"))
    return table(
        f"Decoding on {CONTEXT:,} tokens ({LAYERS} blocks, {WIDTH} wide, {HEADS} heads, float32)",
        ("batch", "key/value heads", "transformers, tokens/s", "multihead, tokens/s", "ratio"),
        rows,
    )
