"""Weights of other attention layers taken into ours, and ours given to torch's.

Every conversion first reads what a module amounts to into :class:`_Taken`, and refuses what this layer cannot express;
one place then makes the layer. Parameters are copied, with their device, dtype and ``requires_grad``; hooks are not. A
class of transformers is known by its full name: none is imported, and a subclass, which may compute something else, is
refused.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from multihead.conventions import default_scale, in_words, kind_of
from multihead.layer.attention import Attend, MultiHeadAttention
from multihead.positions import Linear, Llama3, Position, Rotary, Scaling, YaRN

__all__ = ["from_torch", "from_transformers", "to_torch"]


class _Weights(NamedTuple):
    """A projection's parameters, (out, in) and (out,), or views of them."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def split(self, features: Sequence[int]) -> list["_Weights"]:
        """The projections that were stacked to make this one, by the features that each gives."""
        weights, biases = (_split(whole, features) for whole in (self.weight, self.bias))
        return [_Weights(*pair) for pair in zip(weights, biases, strict=True)]


@dataclass(frozen=True)
class _Taken:
    """What another attention layer amounts to, in this library's words."""

    projections: list[_Weights]
    """Of queries, keys, values and the output."""
    head_dim: int
    dropout: float
    scale: float | None = None
    softcap: float | None = None
    norms: dict[str, nn.Parameter] = field(default_factory=dict)
    epsilon: float | None = None
    position: Position | None = None

    def layer(self, kind: type[MultiHeadAttention], *, training: bool, fused: bool) -> MultiHeadAttention:
        """The layer of these weights, of the class ``kind``."""
        q, k, v, out = (weights.weight for weights in self.projections)
        layer = kind(
            q.shape[1],
            q.shape[0] // self.head_dim,
            num_kv_heads=k.shape[0] // self.head_dim,
            head_dim=self.head_dim,
            kdim=k.shape[1],
            vdim=v.shape[1],
            out_dim=out.shape[0],
            dropout=self.dropout,
            scale=_unusual(self.scale, self.head_dim),
            softcap=self.softcap,
            qk_norm=partial(nn.RMSNorm, eps=self.epsilon) if self.norms else None,
            fused=fused,
            position=None if self.position is None else self.position.to(q.device),
            # starting values would take time and random numbers, and be overwritten
            device="meta",
        )
        *stacked, own = self.projections
        parts = [stacked, [own]] if fused else [[weights] for weights in self.projections]
        for name, weights in zip(_names(layer), parts, strict=True):
            projection = layer.get_submodule(name)
            projection.register_parameter("weight", _joined(*(each.weight for each in weights)))
            has_bias = any(each.bias is not None for each in weights)
            projection.register_parameter("bias", _joined(*map(_bias, weights)) if has_bias else None)
        for name, weight in self.norms.items():
            layer.get_submodule(name).register_parameter("weight", _joined(weight))
        return layer.train(training)


def from_torch(
    module: nn.Module, kind: type[MultiHeadAttention] = MultiHeadAttention, *, fused: bool = False
) -> MultiHeadAttention:
    """A layer of the class ``kind`` with torch's weights: see :meth:`MultiHeadAttention.from_torch`."""
    if _full_name(module) not in _TORCH:
        raise TypeError(
            f"{_full_name(module)} is not understood, expected {in_words(_TORCH, 'or')}: a subclass may compute "
            "something else."
        )
    source: Any = module
    # torch_compat keeps torch's parameters in projections, around which an adapter may stand
    names = ("in_proj", *_APART, "out_proj")
    *_, out = _projections(source, *(name for name in names if getattr(source, name, None) is not None))
    extras = {"add_bias_kv": source.bias_k is not None, "add_zero_attn": source.add_zero_attn}
    asked = [name for name, there in extras.items() if there]
    if asked:
        raise ValueError(
            f"this layer has no keys beside those of the tokens, as {in_words(asked)} would ask: "
            "torch_compat.MultiheadAttention has them."
        )
    if source.in_proj_weight is not None:
        projections = _Weights(_plain(source, "in_proj_weight"), source.in_proj_bias).split([source.embed_dim] * 3)
    else:
        weights = (_plain(source, f"{name}_proj_weight") for name in "qkv")
        biases = _split(source.in_proj_bias, [source.embed_dim] * 3)
        projections = [_Weights(*pair) for pair in zip(weights, biases, strict=True)]
    taken = _Taken([*projections, out], source.head_dim, source.dropout)
    return taken.layer(kind, training=source.training, fused=fused)


def to_torch(layer: MultiHeadAttention, *, batch_first: bool = True) -> nn.MultiheadAttention:
    """Torch's layer with these weights: see :meth:`MultiHeadAttention.to_torch`."""
    width = layer.num_heads * layer.head_dim
    only_here = {
        f"num_heads · head_dim = {width} beside embed_dim={layer.embed_dim}": width != layer.embed_dim,
        f"out_dim={layer.out_dim}": layer.out_dim != layer.embed_dim,
        f"scale={layer.scale}": _unusual(layer.scale, layer.head_dim) is not None,
        f"softcap={layer.softcap}": layer.softcap is not None,
        "sinks": layer.sinks is not None,
        "qk_norm": layer.q_norm is not None or layer.k_norm is not None,
        "output_gate": layer.gate_proj is not None,
        f"position={type(layer.position).__name__}": layer.position is not None,
        f"attend={type(layer.attend).__name__}": type(layer.attend) is not Attend,
        f"forward of {type(layer).__name__}": type(layer).forward is not MultiHeadAttention.forward,
    }
    reasons = [reason for reason, there in only_here.items() if there]
    reasons += [f"{name} ({fault})" for name in _names(layer) if (fault := _fault(getattr(layer, name))) is not None]
    if reasons:
        raise ValueError(f"nn.MultiheadAttention cannot express this layer's {in_words(reasons)}.")
    *projections, out = _projections(layer, *_names(layer))
    kv_width = layer.num_kv_heads * layer.head_dim
    q, k, v = projections if layer.qkv_proj is None else projections[0].split([width, kv_width, kv_width])
    stacked = [q, *(_repeated(weights, layer.head_dim, layer.num_heads // layer.num_kv_heads) for weights in (k, v))]
    has_bias = any(weights.bias is not None for weights in (*stacked, out))
    sizes = {name: getattr(layer, name) for name in ("embed_dim", "num_heads", "dropout", "kdim", "vdim")}
    module = nn.MultiheadAttention(**sizes, bias=has_bias, batch_first=batch_first, device="meta")
    if module.in_proj_weight is not None:
        module.register_parameter("in_proj_weight", _joined(*(weights.weight for weights in stacked)))
    else:
        for name, weights in zip("qkv", stacked, strict=True):
            module.register_parameter(f"{name}_proj_weight", _joined(weights.weight))
    module.out_proj.register_parameter("weight", _joined(out.weight))
    if has_bias:
        module.register_parameter("in_proj_bias", _joined(*map(_bias, stacked)))
        module.out_proj.register_parameter("bias", _joined(_bias(out)))
    return module.train(layer.training)


def from_transformers(module: nn.Module, *, fused: bool = False) -> MultiHeadAttention:
    """The layer with the weights of an attention block of transformers, and equal outputs.

    ==================================================  ===============================================================
    class                                               what is taken
    ==================================================  ===============================================================
    BertAttention, RobertaAttention,                    ``self.query``, ``self.key``, ``self.value``, ``output.dense``;
    XLMRobertaAttention, CamembertAttention,            not the dropout, residual and LayerNorm that follow them in
    ElectraAttention, ErnieAttention                    ``output``; self and cross
    GPT2Attention                                       ``c_attn``, taken apart (``q_attn`` for cross), ``c_proj``,
                                                        all transposed; the scale of its options; not ``resid_dropout``
    LlamaAttention, MistralAttention,                   ``q_proj``, ``k_proj``, ``v_proj``, ``o_proj``, key/value
    MixtralAttention, Qwen2Attention,                   heads, ``q_norm`` and ``k_norm`` (Qwen3), scale (Granite,
    Qwen2MoeAttention, Qwen3Attention,                  Gemma 2), softcap (Gemma 2), and as ``position`` the rotation
    Qwen3MoeAttention, GemmaAttention,                  of ``config.rope_parameters``, which the model around the block
    Gemma2Attention, GraniteAttention                   computes: types default, linear, llama3, yarn
    ViTAttention, ViTMAEAttention, ViTMSNAttention,     ``q_proj``, ``k_proj``, ``v_proj``, ``o_proj``
    DeiTAttention, IJepaAttention, Dinov2Attention,
    Dinov2WithRegistersAttention, ASTAttention,
    VivitAttention
    ==================================================  ===============================================================

    The probability of dropping weights and the training mode are kept; a projection that had no bias has none.
    Who may see whom is the mask's: pass :func:`multihead.masks.causal` where the model is causal, and
    ``sliding_window(w)`` where it has a window of w (Mistral's ``config.sliding_window``, other blocks'
    ``sliding_window``). Parameters are copied, not shared.

    Args:
        module: one attention block, of these classes as transformers 5.23 builds them.
        fused: whether the layer has one projection for queries, keys and values; biases that only some of them have
            are zeros in the others.

    Raises:
        TypeError: another class, or a projection that is no plain linear layer (LoRA, quantised).
        ValueError: an option that this layer does not have, such as another type of rotation.

    >>> from transformers import ViTConfig
    >>> from transformers.models.vit.modeling_vit import ViTAttention
    >>> from multihead.layer import conversions
    >>> block = ViTAttention(ViTConfig(hidden_size=24, num_attention_heads=3))
    >>> conversions.from_transformers(block).num_heads
    3
    """
    reader = _READERS.get(_full_name(module))
    if reader is None:
        known = in_words(name.rpartition(".")[2] for name in _READERS)
        raise TypeError(
            f"{_full_name(module)} is no attention block that is understood; of transformers' these are: {known}."
        )
    try:
        taken = reader(module)
    except AttributeError as error:
        raise ValueError(
            f"this {type(module).__name__} is not built as transformers 5.23 builds it: {error}."
        ) from error
    return taken.layer(MultiHeadAttention, training=module.training, fused=fused)


def _bert(module: Any) -> _Taken:
    own = _part(module, "self")
    projections = [*_projections(own, "query", "key", "value"), *_projections(_part(module, "output"), "dense")]
    return _Taken(projections, own.attention_head_size, own.dropout.p, own.scaling)


def _gpt2(module: Any) -> _Taken:
    fused, out = _projections(module, "c_attn", "c_proj")
    widths = [module.embed_dim] * (2 if module.is_cross_attention else 3)
    projections = [*(_projections(module, "q_attn") if module.is_cross_attention else ()), *fused.split(widths)]
    scale = default_scale(module.head_dim) if module.scale_attn_weights else 1.0
    if module.scale_attn_by_inverse_layer_idx:
        scale /= module.layer_idx + 1
    return _Taken([*projections, out], module.head_dim, module.attn_dropout.p, scale)


def _vit(module: Any) -> _Taken:
    projections = _projections(module, "q_proj", "k_proj", "v_proj", "o_proj")
    return _Taken(projections, module.head_dim, module.attention_dropout, module.scaling)


def _llama(module: Any) -> _Taken:
    norms = {name: _part(module, name) for name in ("q_norm", "k_norm") if hasattr(module, name)}
    return replace(
        _vit(module),
        softcap=getattr(module, "attn_logit_softcapping", None),
        norms={name: _plain(norm, "weight") for name, norm in norms.items()},
        epsilon=norms["q_norm"].variance_epsilon if norms else None,
        position=_rotary(module.config.rope_parameters or {}, module.head_dim),
    )


def _rotary(parameters: dict[str, Any], head_dim: int) -> Rotary:
    """The rotation that transformers describes by ``config.rope_parameters``."""
    usual = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
    options = {name: value for name, value in parameters.items() if name not in usual}
    kind = parameters.get("rope_type", "default")
    if kind not in _SCALINGS:
        raise ValueError(
            f"rotation of the type {kind!r} (config.rope_parameters) is not understood: {in_words(_SCALINGS)} are."
        )
    if parameters.get("partial_rotary_factor") not in (None, 1.0):
        raise ValueError("config.rope_parameters turn a share of the features, which is not understood here.")
    make, required, optional = _SCALINGS[kind]
    strange = [name for name in options if name not in (*required, *optional)]
    missing = [name for name in ("rope_theta", *required) if parameters.get(name) is None]
    if strange or missing:
        faults = [f"{verb} {in_words(names)}" for verb, names in (("hold", strange), ("lack", missing)) if names]
        raise ValueError(f"for rotation of the type {kind!r}, config.rope_parameters {in_words(faults)}.")
    renamed = {_RENAMED.get(name, name): value for name, value in options.items()}
    scaling = None if make is None else make(**renamed)
    return Rotary(head_dim, base=parameters["rope_theta"], scaling=scaling)


def _yarn(**options: Any) -> YaRN:
    """YaRN as transformers reads its options: a zero says nothing, nor does one ``mscale`` without the other."""
    pair = ("mscale", "mscale_all_dim")
    alone = not all(options.get(name) for name in pair)
    left_out = [name for name in options if (name in pair and alone) or (name.startswith("beta") and not options[name])]
    return YaRN(**{name: value for name, value in options.items() if name not in left_out})


_SCALINGS: dict[str, tuple[Callable[..., Scaling] | None, tuple[str, ...], tuple[str, ...]]] = {
    "default": (None, (), ()),
    "linear": (Linear, ("factor",), ()),
    "llama3": (Llama3, ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"), ()),
    "yarn": (
        _yarn,
        ("factor", "original_max_position_embeddings"),
        ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"),
    ),
}
"""Types of rotation: what makes the scaling, and the options that transformers must and may give."""

_RENAMED = {
    "original_max_position_embeddings": "original_length",
    "low_freq_factor": "low_frequency",
    "high_freq_factor": "high_frequency",
}

_APART = ("q_proj", "k_proj", "v_proj")
_TORCH = ("torch.nn.modules.activation.MultiheadAttention", "multihead.torch_compat.attention.MultiheadAttention")

_FAMILIES = {
    _bert: "bert.Bert roberta.Roberta xlm_roberta.XLMRoberta camembert.Camembert electra.Electra ernie.Ernie",
    _gpt2: "gpt2.GPT2",
    _llama: "llama.Llama mistral.Mistral mixtral.Mixtral qwen2.Qwen2 qwen2_moe.Qwen2Moe qwen3.Qwen3 qwen3_moe.Qwen3Moe "
    "gemma.Gemma gemma2.Gemma2 granite.Granite",
    _vit: "vit.ViT vit_mae.ViTMAE vit_msn.ViTMSN deit.DeiT ijepa.IJepa dinov2.Dinov2 "
    "dinov2_with_registers.Dinov2WithRegisters audio_spectrogram_transformer.AST vivit.Vivit",
}
_READERS: dict[str, Callable[[Any], _Taken]] = {
    f"transformers.models.{room}.modeling_{room}.{name}Attention": reader
    for reader, members in _FAMILIES.items()
    for room, name in (member.split(".") for member in members.split())
}
"""Full names of transformers' classes, and the function that reads each."""

_LINEAR = {
    "torch.nn.modules.linear.Linear": False,
    "torch.nn.modules.linear.NonDynamicallyQuantizableLinear": False,
    "transformers.pytorch_utils.Conv1D": True,
}
"""Full names of plain projections, and whether their weight is (in, out)."""


def _full_name(module: nn.Module) -> str:
    """A class by which to know what a module computes; no known one if its instance computes something else."""
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    return f"{name} whose forward was replaced" if "forward" in getattr(module, "__dict__", {}) else name


def _unusual(scale: float | None, head_dim: int) -> float | None:
    """The scale, or None where it is the usual one to rounding."""
    return None if scale is None or math.isclose(scale, default_scale(head_dim), rel_tol=1e-12) else scale


def _fault(projection: nn.Module) -> str | None:
    """Why a projection's own weight is not all that there is to it, if so."""
    if _full_name(projection) not in _LINEAR:
        return f"{_full_name(projection)}, no plain nn.Linear"
    made = [name for name in ("weight", "bias") if type(getattr(projection, name)) not in (nn.Parameter, type(None))]
    return f"whose {in_words(made)} is no plain parameter" if made else None


def _projections(module: Any, *names: str) -> list[_Weights]:
    """The parameters of plain linear layers inside ``module``."""
    found = []
    for name in names:
        projection = getattr(module, name)
        fault = _fault(projection)
        if fault is not None:
            raise TypeError(
                f"{name} of this {type(module).__name__} is not to be copied ({fault}): "
                "merge adapters, make pruning permanent, or dequantise first."
            )
        weight = projection.weight
        turned = _LINEAR[_full_name(projection)]
        found.append(_Weights(_view(weight.t(), weight) if turned else weight, projection.bias))
    return found


def _part(module: Any, name: str) -> Any:
    """A module inside ``module``, of a class that stands in the same file."""
    part = getattr(module, name)
    if type(part).__module__ != type(module).__module__:
        raise TypeError(f"{name} of this {type(module).__name__} is a {_full_name(part)}, not one of transformers.")
    return part


def _plain(module: Any, name: str) -> nn.Parameter:
    found = getattr(module, name)
    if type(found) is not nn.Parameter:
        raise TypeError(f"{name} of this {type(module).__name__} is {kind_of(found)}, expected a plain parameter.")
    return found


def _names(layer: MultiHeadAttention) -> tuple[str, ...]:
    """The projections of a layer, that of the output last."""
    return (*(_APART if layer.qkv_proj is None else ("qkv_proj",)), "out_proj")


def _split(whole: nn.Parameter | None, features: Sequence[int]) -> list[Any]:
    """A weight or a bias as that of the parts that give so many features each."""
    return [None] * len(features) if whole is None else [_view(part, whole) for part in whole.split(list(features))]


def _view(part: Tensor, whole: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(part.detach(), requires_grad=whole.requires_grad)


def _joined(*parameters: nn.Parameter) -> nn.Parameter:
    """A new parameter: these, one under the other; it learns where one of them does."""
    learns = any(parameter.requires_grad for parameter in parameters)
    return nn.Parameter(torch.cat([parameter.detach() for parameter in parameters]), requires_grad=learns)


def _bias(weights: _Weights) -> nn.Parameter:
    """The bias, or zeros, which add nothing."""
    if weights.bias is not None:
        return weights.bias
    return _view(weights.weight.new_zeros(weights.weight.shape[0]), weights.weight)


def _repeated(weights: _Weights, head_dim: int, times: int) -> _Weights:
    """Every key/value head as often as query heads read it."""

    def repeated(whole: nn.Parameter) -> nn.Parameter:
        return _view(whole.unflatten(0, (-1, head_dim)).repeat_interleave(times, 0).flatten(0, 1), whole)

    return _Weights(repeated(weights.weight), None if weights.bias is None else repeated(weights.bias))
