"""Small random models of transformers' architectures, one of each family, with inputs and the weights eager returns."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.lens.hosts import bart, bert, gpt2, ids, llama, padded, t5

LENGTH = 11
"""Tokens of a text."""

GROUPED = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 29,
    "vocab_size": 53,
    "max_position_embeddings": 59,
    "pad_token_id": 0,
}
PLAIN = {
    "hidden_size": 21,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 23,
}
WORDS = {"vocab_size": 53, "max_position_embeddings": 59, "pad_token_id": 0}
PICTURE = {"image_size": 15, "patch_size": 5, "num_channels": 3}


@dataclass(frozen=True)
class Family:
    """An architecture."""

    make: Callable[[], Any]
    inputs: Callable[[], dict[str, Any]]
    left: bool = True
    """Whether its texts may be padded on the left."""
    sdpa: bool = True
    """Whether transformers has fused attention for it."""
    text: bool = True


def model_of(name: str, options: dict[str, Any], kind: str = "Model", config: str | None = None) -> Callable[[], Any]:
    def make():
        torch.manual_seed(1)
        model = getattr(transformers, name + kind)(getattr(transformers, config or f"{name}Config")(**options)).eval()
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                if "sinks" in path or "relative" in path:
                    parameter.normal_()  # they begin as zeros, or as nothing at all
        return model

    return make


def text(length: int = LENGTH) -> dict[str, Any]:
    return {"input_ids": ids(2, length)}


def two_texts() -> dict[str, Any]:
    return {"input_ids": ids(2, LENGTH), "decoder_input_ids": ids(2, 5, seed=6)}


def picture(side: int = 15) -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(5))}


def speech() -> dict[str, Any]:
    features = torch.randn(2, 7, 26, generator=torch.Generator().manual_seed(5))
    return {"input_features": features, "decoder_input_ids": ids(2, 5, seed=6)}


def caption() -> dict[str, Any]:
    words = ids(2, 13)
    words[:, 2:11] = 3
    words[:, 11:] += 5
    return {"input_ids": words.where(words > 2, 4), **picture()}


def marian():
    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 53, "max_position_embeddings": 59}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 4, "encoder_ffn_dim": 13, "decoder_ffn_dim": 11}
    options = sizes | heads | {"pad_token_id": 0, "decoder_start_token_id": 0}
    return model_of("Marian", options, "MTModel", "MarianConfig")()


def whisper():
    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 53, "num_mel_bins": 7}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 4, "encoder_ffn_dim": 13, "decoder_ffn_dim": 11}
    more = {"max_source_positions": 13, "max_target_positions": 17, "pad_token_id": 0, "decoder_start_token_id": 1}
    special = {"bos_token_id": 1, "eos_token_id": 2, "begin_suppress_tokens": None, "suppress_tokens": None}
    return model_of("Whisper", sizes | heads | more | special)()


def clip():
    words = PLAIN | WORDS | {"eos_token_id": 2, "bos_token_id": 1}
    config = transformers.CLIPConfig(text_config=words, vision_config=PLAIN | PICTURE, projection_dim=11)
    torch.manual_seed(1)
    return transformers.CLIPModel(config).eval()


def llava():
    vision = transformers.CLIPVisionConfig(**PLAIN, **PICTURE)
    words = transformers.LlamaConfig(**GROUPED)
    torch.manual_seed(1)
    config = transformers.LlavaConfig(vision_config=vision, text_config=words, image_token_index=3)
    return transformers.LlavaForConditionalGeneration(config).eval()


GEMMA2 = GROUPED | {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 7, "attn_logit_softcapping": 0.7}
GEMMA3 = GROUPED | {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 7}
GPT_OSS = GROUPED | {"hidden_size": 32, "intermediate_size": 32, "head_dim": 8, "sliding_window": 5}
GPT_OSS |= {"num_local_experts": 3, "num_experts_per_tok": 2}
MODERN = PLAIN | WORDS | {"hidden_size": 24, "local_attention": 6, "global_attn_every_n_layers": 2}
MODERN |= {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
LARGE_SCORES = {"initializer_range": 0.5}

FAMILIES: dict[str, Family] = {
    "BERT": Family(bert, text),
    "RoBERTa": Family(model_of("Roberta", PLAIN | WORDS), text, left=False),
    "ModernBERT": Family(model_of("ModernBert", MODERN), text, left=False),
    "Llama": Family(llama, text),
    "Mistral": Family(model_of("Mistral", GROUPED | {"sliding_window": 5}, "ForCausalLM"), text),
    "Qwen3": Family(model_of("Qwen3", GROUPED | {"head_dim": 8}, "ForCausalLM"), text),
    "GPT-2": Family(gpt2, text),
    "Gemma 2": Family(model_of("Gemma2", GEMMA2 | LARGE_SCORES, "ForCausalLM"), text, sdpa=False),
    "Gemma 3": Family(model_of("Gemma3", GEMMA3, "ForCausalLM", "Gemma3TextConfig"), text),
    "gpt-oss": Family(model_of("GptOss", GPT_OSS, "ForCausalLM"), text, sdpa=False),
    "T5": Family(t5, two_texts, left=False),
    "BART": Family(bart, two_texts, left=False),
    "Marian": Family(marian, two_texts, left=False),
    "Whisper": Family(whisper, speech, text=False),
    "ViT": Family(model_of("ViT", PLAIN | PICTURE), picture, text=False),
    "DINOv2": Family(model_of("Dinov2", PLAIN | PICTURE), picture, text=False),
    "CLIP": Family(clip, lambda: text() | picture(), left=False),
    "LLaVA": Family(llava, caption, text=False),
}

CASES = {
    "whole": lambda inputs: inputs,
    "right": lambda inputs: inputs | {"attention_mask": padded(LENGTH, 7)},
    "left": lambda inputs: inputs | {"attention_mask": padded(LENGTH, 7, left=True)},
}


def cases() -> list[tuple[str, str]]:
    """Every family without padding, and with those paddings that it takes."""
    found = [(name, "whole") for name in FAMILIES]
    for name, family in FAMILIES.items():
        found += [(name, "right")] * family.text + [(name, "left")] * (family.text and family.left)
    return found


def implementations(family: Family) -> list[str]:
    return ["eager", "multihead", *(["sdpa"] if family.sdpa else [])]


def with_attention(model: Any, implementation: str) -> Any:
    """A copy of a model with another implementation of attention."""
    model = copy.deepcopy(model)
    model.set_attn_implementation(implementation)
    return model


def eager_weights(model: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """The weights that each attention module of the model itself returns in eager mode, by path."""
    model, found = with_attention(model, "eager"), {}

    def keep(name):
        def hook(module, args, output):
            if isinstance(output, tuple) and isinstance(output[-1], Tensor) and output[-1].ndim == 4:
                found[name] = output[-1].detach()

        return hook

    for name, module in model.named_modules():
        if "get_interface" in inspect.unwrap(type(module).forward).__code__.co_names:
            module.register_forward_hook(keep(name))
    with torch.no_grad():
        model(**inputs)
    return found
