"""Attention for models of transformers that is multihead's own: ``attn_implementation="multihead"``.

transformers has two tables: of attention functions, and of functions that make the masks which these take. A name that
is only in the first loses its causal mask without a word, so both are filled. Masks are those of "sdpa", booleans or
nothing, with one difference: nothing, together with the module's causal flag, is only said where queries and keys are
equally many, so that a causal mask always ends at the last key.
"""

from typing import Any

from torch import Tensor, nn

from multihead.core import AttentionCall
from multihead.errors import NoKernelError
from multihead.kernels import attend
from multihead.lens.adapters.huggingface import NAME
from multihead.masks import Mask, causal, dense

_SPARSE = ("indices", "block_indices")


def register_transformers() -> None:
    r"""Give transformers this library's attention, under the name ``"multihead"``.

    Afterwards ``model.set_attn_implementation("multihead")``, or ``attn_implementation="multihead"`` when a model is
    loaded, lets every architecture that goes through ``AttentionInterface`` compute
    :func:`multihead.kernels.attend`: also those that have no fused attention in transformers, for their softcap
    (Gemma 2) or learned sinks (gpt-oss). Outputs and gradients are those of ``"eager"``, but for a query that sees no
    key, as in padding: it gets 0 here, as with ``"sdpa"``, and the mean of all values there. Weights are not formed
    and so not returned: :func:`multihead.lens.observe` sees them.

    Calling it again changes nothing. It stays for the life of the process.

    Raises:
        ImportError: transformers is not installed.

    What cannot be expressed raises :class:`~multihead.errors.NoKernelError` from the model's forward: a paged cache,
    sparse indices, sinks of each query, a mask that is no tensor of booleans or numbers, and a module that has neither
    a mask nor says whether it is causal.

    >>> import torch, transformers
    >>> from multihead.lens import register_transformers
    >>> register_transformers()
    >>> sizes = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 1, "intermediate_size": 8}
    >>> model = transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=32, attn_implementation="multihead"))
    >>> model(torch.ones(2, 5, dtype=torch.int64)).last_hidden_state.shape
    torch.Size([2, 5, 24])
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
    except ImportError as error:
        raise ImportError('register_transformers needs transformers: pip install "multihead[hf]".') from error
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, attention_mask)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """The function of transformers' interface: (B, H, L, D) tensors to (B, Lq, H, Dv), and no weights.

    Raises:
        NoKernelError: this attention cannot be expressed; the message says why.
    """
    _refuse(attention_mask, others)
    batch = max(query.shape[0], key.shape[0])
    query, key, value = (tensor.expand(batch, -1, -1, -1) for tensor in (query, key, value))
    mask, bias = _mask_and_bias(module, query, attention_mask, others)
    call = AttentionCall(
        query,
        key,
        value,
        mask,
        bias,
        scale=scaling,
        softcap=others.get("softcap"),
        sinks=others.get("s_aux"),
        dropout=dropout if module.training else 0.0,
    )
    return attend(call).transpose(1, 2).contiguous(), None


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    *args: Any,
    allow_is_causal_skip: bool = True,
    **others: Any,
) -> Tensor | None:
    """The masks of transformers' "sdpa", (B, 1, Lq, Lk), True where a query may see a key; None where that is clear."""
    from transformers.masking_utils import sdpa_mask

    clear = q_length in (1, kv_length)
    skip = allow_is_causal_skip and clear
    return sdpa_mask(batch_size, q_length, kv_length, q_offset, kv_offset, *args, allow_is_causal_skip=skip, **others)


def _refuse(attention_mask: object, others: dict[str, Any]) -> None:
    reason = None
    if others.get("cache") is not None:
        reason = "it reads a paged cache; generate without continuous batching"
    elif any(others.get(name) is not None for name in _SPARSE):
        reason = 'it chooses keys by sparse indices; use "eager"'
    elif others.get("sinks") is not None:
        reason = 'its sinks differ from query to query; use "eager"'
    elif attention_mask is not None and not isinstance(attention_mask, Tensor):
        reason = f"its mask is a {type(attention_mask).__name__}, not a tensor"
    if reason is not None:
        raise NoKernelError(f'attn_implementation="{NAME}" does not compute this attention: {reason}.')


def _mask_and_bias(
    module: nn.Module, query: Tensor, given: Tensor | None, others: dict[str, Any]
) -> tuple[Mask | None, Tensor | None]:
    bias = others.get("position_bias")
    if given is None:
        return _causal(module, query, others.get("is_causal")), bias
    if given.is_floating_point():
        return None, given if bias is None else bias + given
    return dense(given.bool()), bias


def _causal(module: nn.Module, query: Tensor, flag: bool | None) -> Mask | None:
    if query.shape[2] == 1:
        return None
    flag = getattr(module, "is_causal", None) if flag is None else flag
    if flag is None:
        raise NoKernelError(
            f'attn_implementation="{NAME}" does not compute this attention: it got no mask, and '
            f'{type(module).__name__} has no is_causal that would say what that means; use "eager".'
        )
    return causal() if flag else None
