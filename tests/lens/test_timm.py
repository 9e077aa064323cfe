"""Vision Transformers of timm, seen: the weights are those that their own code forms where the fused path is off.

timm needs torchvision, and so is in a folder of its own, ``.venv/timm`` (the Makefile says why): ``make test`` runs
this file with it.
"""

import copy
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from multihead.errors import UnsupportedAttentionError
from multihead.lens import Seen, SkippedAttentionWarning, observe
from multihead.recording import load
from tests.lens.hosts import nothing_patched, observed, same

if find_spec("timm") is None:
    pytest.skip("timm is not on the path: make test has it there", allow_module_level=True)


def import_timm() -> Any:
    """timm, also where torchvision was built for another torch than the one that is here, as for CUDA's beside a CPU's.

    torchvision can do without its compiled operators, but not without the names of two, for which it registers shapes.
    These are declared, and nothing more: calling them is still an error, and nothing here does.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("timm")


timm = import_timm()
models, layers = timm.models, timm.layers

BAR = 1e-5
FAR = 1000 * BAR
HEIGHT, WIDTH, PATCH = 21, 35, 7
PATCHES = 3 * 5
SIZES = {
    "img_size": (HEIGHT, WIDTH),
    "patch_size": PATCH,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "num_classes": 5,
}
BLOCKS = ["blocks.0.attn", "blocks.1.attn"]


@pytest.fixture(autouse=True)
def fused():
    """What the refusals advise."""
    layers.set_fused_attn(True, experimental=True)
    yield
    layers.set_fused_attn(True)


def pictures(*, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(5))


def made(make: Callable[..., nn.Module], *args: Any, **options: Any) -> nn.Module:
    """A model with weights large enough that no two heads attend alike; timm's first ones are nearly even."""
    torch.manual_seed(1)
    model = make(*args, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return model


def vit(**options: Any) -> nn.Module:
    return made(models.VisionTransformer, **(SIZES | options))


def maxvit() -> nn.Module:
    attention = models.maxxvit.MaxxVitTransformerCfg(dim_head=4, window_size=(3, 5), rel_pos_type="bias")
    sizes = {"embed_dim": (12,), "depths": (1,), "block_type": ("M",), "stem_width": 8}
    config = models.maxxvit.MaxxVitCfg(**sizes, transformer_cfg=attention)
    return made(models.maxxvit.MaxxVit, config, img_size=(12, 20), num_classes=5)


def swin() -> nn.Module:
    """Two stages of windows of 3 x 5 patches, shifted in every second layer, so that some may not see each other."""
    sizes = {"img_size": (12, 20), "patch_size": 2, "embed_dim": 24, "window_size": (3, 5), "num_classes": 5}
    return made(models.SwinTransformer, depths=(2, 1), num_heads=(3, 6), always_partition=True, **sizes)


@dataclass(frozen=True)
class Case:
    """A model of timm."""

    make: Callable[[], nn.Module]
    names: list[str]
    """Its attentions."""
    keys: int
    picture: Callable[[], Tensor] = pictures
    options: dict[str, Tensor] = field(default_factory=dict)


small = partial(pictures, height=12, width=20)
VISIBLE = torch.rand(2, 1, PATCHES + 1, PATCHES + 1, generator=torch.Generator().manual_seed(3)) > 0.3
VISIBLE |= torch.eye(PATCHES + 1, dtype=torch.bool)
IN_A_BLOCK = {"block_fn": models.vision_transformer.ParallelScalingBlock}

CASES = {
    "ViT": Case(vit, BLOCKS, PATCHES + 1),
    "normed queries and keys": Case(partial(vit, qk_norm=True), BLOCKS, PATCHES + 1),
    "registers": Case(partial(vit, reg_tokens=4, no_embed_class=True, init_values=0.7), BLOCKS, PATCHES + 5),
    "masked": Case(vit, BLOCKS, PATCHES + 1, options={"attn_mask": VISIBLE}),
    "pooled by attention": Case(partial(vit, global_pool="map", class_token=False), [*BLOCKS, "attn_pool"], PATCHES),
    "attention and MLP side by side": Case(partial(vit, **IN_A_BLOCK), ["blocks.0", "blocks.1"], PATCHES + 1),
    "relative positions": Case(
        partial(made, models.VisionTransformerRelPos, **SIZES, class_token=True), BLOCKS, PATCHES + 1
    ),
    "BEiT": Case(partial(made, models.Beit, **SIZES, use_rel_pos_bias=True), BLOCKS, PATCHES + 1),
    "BEiT, one bias for all": Case(
        partial(made, models.Beit, **SIZES, use_shared_rel_pos_bias=True), BLOCKS, PATCHES + 1
    ),
    "EVA-02, rotary": Case(
        partial(made, models.Eva, **SIZES, use_rot_pos_emb=True, qkv_fused=False, swiglu_mlp=True, num_reg_tokens=2),
        BLOCKS,
        PATCHES + 3,
    ),
    "Swin": Case(swin, [f"layers.{i}.attn" for i in ("0.blocks.0", "0.blocks.1", "1.blocks.0")], 15, small),
    "MaxViT": Case(maxvit, [f"stages.0.blocks.0.attn_{kind}.attn" for kind in ("block", "grid")], 15, small),
}


class Softmaxes(TorchFunctionMode):
    """Keeps what each module's softmax returns."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.inside: list[str] = []
        self.found: dict[str, list[Tensor]] = {}
        for name, module in model.named_modules():
            if next(module.children(), None) is not None:
                module.register_forward_pre_hook(lambda *_, name=name: self.inside.append(name))
                module.register_forward_hook(lambda *_: self.inside.pop() and None)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (Tensor.softmax, torch.softmax, F.softmax):
            self.found.setdefault(self.inside[-1], []).append(result.detach())
        return result


def written_out(model: nn.Module) -> nn.Module:
    """A copy that multiplies its weights in its own code."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return model


def own_weights(model: nn.Module, *args: Any, **options: Any) -> dict[str, list[Tensor]]:
    """The weights that each attention of timm forms in its own code, by path."""
    model = written_out(model)
    with torch.no_grad(), Softmaxes(model) as softmaxes:
        model(*args, **options)
    return softmaxes.found


def recorded(seen: Seen) -> dict[str, list[Tensor]]:
    """All weights of each attention, as its recording computes them from queries and keys, by path."""
    recording, whole, found = seen.recording(), slice(None), {}
    for layer in recording:
        items = [recording.tile(layer.index, whole, whole, item=item) for item in range(layer.sizes.batch)]
        found.setdefault(layer.name, []).append(torch.stack(items))
    return found


def difference(weights: dict[str, list[Tensor]], expected: dict[str, list[Tensor]]) -> float:
    assert list(weights) == list(expected)
    pairs = [pair for name in weights for pair in zip(weights[name], expected[name], strict=True)]
    assert all(ours.shape == theirs.shape for ours, theirs in pairs)
    return max((ours - theirs).abs().max().item() for ours, theirs in pairs)


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_written_out(name):
    case = CASES[name]
    model, picture = case.make(), case.picture()
    seen = observed(model, picture, **case.options)
    assert seen.check().passed
    assert [layer.name for layer in seen.layers] == case.names
    assert {layer.host for layer in seen.layers} == {"sdpa"}
    assert {layer.sizes.keys for layer in seen.layers} == {case.keys}
    weights, expected = recorded(seen), own_weights(model, picture, **case.options)
    assert difference(weights, expected) < BAR
    for layer, (own,) in expected.items():
        assert difference({layer: weights[layer]}, {layer: [own.roll(1, 1)]}) > FAR, "heads are not told apart"


def without_norms(model):
    for block in model.blocks:
        block.attn.q_norm = block.attn.k_norm = nn.Identity()


def without_bias(model):
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "rel_pos" in path or "relative_position" in path:
                parameter.zero_()


def without_rotation(model):
    model.rope = None


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("normed queries and keys", without_norms),
        ("relative positions", without_bias),
        ("BEiT", without_bias),
        ("BEiT, one bias for all", without_bias),
        ("EVA-02, rotary", without_rotation),
        ("Swin", without_bias),
        ("MaxViT", without_bias),
    ],
)
def test_what_shapes_the_weights_is_seen(name, change):
    case = CASES[name]
    model, picture = case.make(), case.picture()
    weights = recorded(observed(model, picture))
    assert difference(weights, own_weights(model, picture)) < BAR
    change(model)
    assert difference(weights, own_weights(model, picture)) > FAR


def test_masks_are_seen():
    model, picture = vit(), pictures()
    weights = recorded(observed(model, picture, attn_mask=VISIBLE))
    for (layer,) in weights.values():
        assert torch.equal(layer > 0, VISIBLE.expand_as(layer))
    assert difference(weights, own_weights(model, picture)) > FAR


def test_differential_attention_is_two_of_each_head():
    """Ye et al. 2024: what one attention sees is subtracted from what another does."""
    model, picture = vit(attn_layer=layers.DiffAttention), pictures()
    seen = observed(model, picture)
    assert seen.check().passed
    assert [layer.name for layer in seen.layers] == [name for name in BLOCKS for _ in range(2)]
    both = {name: [whole[:, 0::2], whole[:, 1::2]] for name, (whole,) in own_weights(model, picture).items()}
    assert difference(recorded(seen), both) < BAR
    exchanged = {name: pair[::-1] for name, pair in both.items()}
    assert difference(recorded(seen), exchanged) > FAR


@pytest.mark.parametrize("name", CASES)
def test_the_written_out_path_is_refused(name):
    case = CASES[name]
    model, picture = written_out(case.make()), case.picture()
    advice = r"its fused_attn is off: call timm.layers.set_fused_attn\(True, experimental=True\) before making it"
    sentence = (
        rf"layer 0 \({re.escape(case.names[0])}\) cannot be observed: .* its weights in code of its own.*{advice}"
    )
    with pytest.raises(UnsupportedAttentionError, match=sentence), observe(model):
        model(picture, **case.options)
    assert nothing_patched()


def test_the_advice_helps():
    case = CASES["Swin"]
    for advice in ({"enable": False}, {"enable": True}):
        layers.set_fused_attn(**advice)
        model = case.make()
        with pytest.raises(UnsupportedAttentionError, match="its fused_attn is off"), observe(model):
            model(case.picture())
    layers.set_fused_attn(True, experimental=True)
    assert observed(case.make(), case.picture()).check().passed


def test_attention_without_a_fused_path():
    """CaiT mixes its heads before and after the softmax, which no fused attention does; its last layers do not."""
    model = made(models.Cait, **SIZES | {"img_size": HEIGHT})
    picture = pictures(width=HEIGHT)
    with (
        pytest.raises(
            UnsupportedAttentionError,
            match=r"layer 0 \(blocks.0.attn\) cannot be observed: TalkingHeadAttn multiplies its weights in code of "
            r"its own.*; a model that calls torch.nn.functional.scaled_dot_product_attention can be observed",
        ),
        observe(model),
    ):
        model(picture)
    with pytest.warns(SkippedAttentionWarning), observe(model, unsupported="skip") as seen, torch.no_grad():
        output = model(picture)
    assert same(output, model(picture))
    assert seen.check().passed
    expected = {name: own for name, own in own_weights(model, picture).items() if "token_only" in name}
    assert list(expected) == ["blocks_token_only.0.attn", "blocks_token_only.1.attn"]
    assert difference(recorded(seen), expected) < BAR


def test_a_recording_of_a_whole_picture(tmp_path):
    """224 x 224 in patches of 16, as most ViTs are: a class token and 196 patches, whose names are their places."""
    model = vit(img_size=224, patch_size=16)
    picture = pictures(height=224, width=224)
    recording = observed(model, picture).recording()
    assert recording.texts == {"text": [[str(place) for place in range(197)]] * 2}
    assert [(layer.query_text, layer.key_text) for layer in recording] == [("text", "text")] * 2
    assert recording.provenance["model"] == "VisionTransformer"
    recording.save(tmp_path / "seen.safetensors")
    again = load(tmp_path / "seen.safetensors")
    expected = own_weights(model, picture)
    for layer, name in enumerate(BLOCKS):
        (own,) = expected[name]
        assert (again.rows(layer, queries=[0], item=1)[:, 0] - own[1, :, 0]).abs().max() < BAR

    own = expected["blocks.1.attn"][0][0, 2, 0]
    tokens = ["class", *(f"{row},{column}" for row in range(14) for column in range(14))]
    seen = observed(model, picture, options={"layers": "blocks.1.attn", "heads": [2], "queries": [0]})
    (strongest,) = seen.recording([tokens] * 2).top("class", count=1)
    assert (strongest.layer, strongest.head, strongest.key_token) == (1, 2, tokens[own.argmax()])
    assert abs(strongest.weight - own.max()) < BAR
