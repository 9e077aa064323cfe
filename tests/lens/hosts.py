"""Small random models of every host, and the comparisons that several tests make."""

import copy
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from multihead.lens import observe


def flat(output) -> list[Tensor]:
    """Every tensor of a model's output, in order."""
    if isinstance(output, Tensor):
        return list(output.unbind()) if output.is_nested else [output]
    if output is None or isinstance(output, int | float | str | bool):
        return []
    if hasattr(output, "to_tuple"):
        output = output.to_tuple()
    if isinstance(output, dict):
        output = tuple(output.values())
    if not isinstance(output, tuple | list):
        return []  # a cache
    return [tensor for part in output for tensor in flat(part)]


def same(first, second) -> bool:
    """Whether two outputs are the same, bit for bit."""
    first, second = flat(first), flat(second)
    assert first
    return len(first) == len(second) and all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
        for a, b in zip(first, second, strict=True)
    )


def state_of(model: nn.Module) -> list[dict]:
    """What is set on each module itself: nothing of it may differ after an observation."""
    return [dict(vars(module)) for module in model.modules()]


def same_state(before: list[dict], after: list[dict]) -> bool:
    return all(a.keys() == b.keys() and all(a[key] is b[key] for key in a) for a, b in zip(before, after, strict=True))


def nothing_patched() -> bool:
    """Whether torch, transformers and this thread are as nobody had ever observed."""
    import sys

    from multihead.lens import patching, watch

    clean = not _get_current_function_mode_stack() and not patching._observed
    clean = clean and watch._state.run is None and not watch._state.seeing
    for base in (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder):
        clean = clean and base.forward.__module__ == base.__module__ and not hasattr(base.forward, "__wrapped__")
    stock = sys.modules.get("transformers.integrations.sdpa_attention")
    if stock is not None:
        interface = sys.modules["transformers.modeling_utils"].AttentionInterface
        clean = clean and interface._global_mapping["sdpa"] is stock.sdpa_attention_forward
        clean = clean and interface.get_interface.__module__ == interface.__module__
    return clean


def observed(model, *args, options=None, grad=False, **kwargs):
    """Run a model without and with observation; assert that nothing but the seeing differs; return what was seen."""
    state = state_of(model)
    with torch.set_grad_enabled(grad):
        torch.manual_seed(3)
        before = model(*copy.deepcopy(args), **copy.deepcopy(kwargs))
        random_before = torch.get_rng_state()
        torch.manual_seed(3)
        with observe(model, **(options or {})) as seen:
            during = model(*copy.deepcopy(args), **copy.deepcopy(kwargs))
        assert torch.equal(random_before, torch.get_rng_state()), "observing drew random numbers"
    assert same(before, during), "observing changed the output"
    assert same_state(state, state_of(model)), "something stayed patched"
    assert nothing_patched()
    return seen


def in_thread(function):
    """Run a function in another thread, and its exceptions in this one."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(function).result()


class Caller(nn.Module):
    """Own code that calls F.scaled_dot_product_attention in any way."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, **self.options)


class Block(nn.Module):
    """Self-attention as people write it."""

    def __init__(self, width: int = 14, heads: int = 7):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


def stack(layers: int = 3, **sizes) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(Block(**sizes) for _ in range(layers))).eval()


def bert(**changes):
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 21, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 23}
    torch.manual_seed(1)
    return BertModel(BertConfig(**(sizes | {"vocab_size": 53, "max_position_embeddings": 59} | changes))).eval()


def gpt2(**changes):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 15, "n_layer": 2, "n_head": 5, "vocab_size": 53, "n_positions": 59}
    torch.manual_seed(1)
    return GPT2LMHeadModel(GPT2Config(**(sizes | {"bos_token_id": 1, "eos_token_id": 2} | changes))).eval()


def llama(**changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2}
    more = {"intermediate_size": 29, "vocab_size": 53, "max_position_embeddings": 59, "pad_token_id": 0}
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**(sizes | more | changes))).eval()


def t5(**changes):
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 17, "d_kv": 5, "d_ff": 19, "num_layers": 2, "num_heads": 3, "vocab_size": 53}
    more = {"decoder_start_token_id": 0, "relative_attention_num_buckets": 7, "relative_attention_max_distance": 11}
    torch.manual_seed(1)
    return T5ForConditionalGeneration(T5Config(**(sizes | more | changes))).eval()


def bart(**changes):
    from transformers import BartConfig, BartForConditionalGeneration

    sizes = {"d_model": 15, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 53, "max_position_embeddings": 59}
    heads = {"encoder_attention_heads": 3, "decoder_attention_heads": 5, "encoder_ffn_dim": 13, "decoder_ffn_dim": 11}
    torch.manual_seed(1)
    return BartForConditionalGeneration(BartConfig(**(sizes | heads | changes))).eval()


def ids(batch: int, length: int, seed: int = 5) -> Tensor:
    return torch.randint(3, 53, (batch, length), generator=torch.Generator().manual_seed(seed))


def padded(*lengths: int, left: bool = False) -> Tensor:
    """An attention mask, 1 at real tokens, for sequences of these lengths."""
    longest = max(lengths)
    rows = [[0] * (longest - n) + [1] * n if left else [1] * n + [0] * (longest - n) for n in lengths]
    return torch.tensor(rows)


def whole_rows(length: int):
    """Statistics that hold every weight of an attention with this many queries."""
    from multihead import Statistics

    return Statistics(rows=tuple(range(length)))
