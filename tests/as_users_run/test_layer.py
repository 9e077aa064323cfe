"""The layer under everything that torch and its neighbours do to modules; each with the numbers of plain eager mode."""

import copy

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

import multihead as mh
from multihead.positions import Alibi, Rotary, T5Bias
from tests.layer.formula import randomised

# torch's compiler and exporter still use what torch has deprecated
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]

EMBED = 24

LAYERS = {
    "plain": {},
    "grouped": {"num_kv_heads": 2},
    "fused, grouped": {"fused": True, "num_kv_heads": 2},
    "softcap and sinks": {"softcap": 3.0, "sinks": True},
    "norms, gate, rotary": {"qk_norm": nn.RMSNorm, "output_gate": True, "position": lambda: Rotary(4)},
    "alibi": {"position": lambda: Alibi(6)},
    "t5": {"position": lambda: T5Bias(6, buckets=8, max_distance=7)},
}

MASKS = {
    "none": lambda length: None,
    "causal": lambda length: mh.masks.causal(),
    "causal padding": lambda length: (
        mh.masks.causal() & mh.masks.padding(torch.arange(length) < torch.tensor([[length - 2], [length]]))
    ),
    "window of documents": lambda length: mh.masks.sliding_window(3) & mh.masks.documents(torch.arange(length) // 3),
}


def made(options, **more) -> mh.MultiHeadAttention:
    options = {name: value() if name == "position" else value for name, value in options.items()}
    return randomised(mh.MultiHeadAttention(EMBED, 6, **options, **more)).double().eval()


@pytest.fixture(params=LAYERS.values(), ids=LAYERS)
def layer(request) -> mh.MultiHeadAttention:
    return made(request.param)


class Masked(nn.Module):
    """A model with its mask inside, as exporters want it."""

    def __init__(self, layer: mh.MultiHeadAttention, mask) -> None:
        super().__init__()
        self.layer, self.mask = layer, mask

    def forward(self, x):
        return self.layer(x, mask=self.mask)


@pytest.fixture(params=[None, mh.masks.causal()], ids=["no mask", "causal"])
def model(request, layer) -> Masked:
    return Masked(layer, request.param).eval()


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(found, expected) -> None:
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-8)


@pytest.fixture
def compiled(layer):
    torch._dynamo.reset()
    yield torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    torch._dynamo.reset()


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_compiled_in_one_graph_forward_and_backward(layer, compiled, mask):
    """pytorch#152309: torch's module had other gradients under compile."""
    for length in (7, 11):
        outcomes = []
        for run in (layer, compiled):
            x = random(2, length, EMBED, seed=length).requires_grad_()
            output = run(x, mask=mask(length))
            outcomes.append((output, *torch.autograd.grad(output.square().sum(), [x, *layer.parameters()])))
        close(outcomes[1], outcomes[0])


def test_one_compilation_for_all_lengths(layer):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    run = torch.compile(layer, fullgraph=True, backend=backend, dynamic=True)
    with torch.no_grad():
        for length in (5, 6, 9, 13, 2):
            x = random(2, length, EMBED)
            close(run(x, mask=mh.masks.causal()), layer(x, mask=mh.masks.causal()))
    assert len(graphs) == 1


def test_compiled_by_the_default_compiler():
    torch._dynamo.reset()
    layer = made(LAYERS["norms, gate, rotary"])
    run = torch.compile(layer, fullgraph=True)
    x = random(2, 7, EMBED)
    close(run(x, mask=mh.masks.causal()), layer(x, mask=mh.masks.causal()))


def test_dropout_is_compiled():
    torch._dynamo.reset()
    layer = made({}, dropout=0.5).train()
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = random(2, 7, EMBED)
    first, second = run(x), run(x)
    assert not torch.equal(first, second)
    layer.eval()
    close(run(x), layer(x))


def test_steps_on_a_cache_are_compiled_in_one_graph():
    torch._dynamo.reset()
    layer = made({"position": lambda: Rotary(4), "num_kv_heads": 2})
    run = torch.compile(layer, fullgraph=True, backend="eager", dynamic=True)
    x = random(2, 9, EMBED)
    with torch.no_grad():
        whole = layer(x, mask=mh.masks.causal())
        cache = mh.FixedCache(9)
        found = [run(x[:, :4], mask=mh.masks.causal(), cache=cache)]
        found += [run(x[:, [place]], mask=mh.masks.causal(), cache=cache) for place in range(4, 9)]
    close(torch.cat(found, 1), whole)


DYNAMIC = ({0: Dim("batch"), 1: Dim("length", min=2)},)


def test_exported(model):
    program = torch.export.export(model, (random(2, 7, EMBED),), dynamic_shapes=DYNAMIC)
    x = random(3, 11, EMBED)
    close(program.module()(x), model(x))


def test_onnx_runtime_computes_the_same(model, tmp_path):
    """pytorch#143107, #94675."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model = model.float()
    program = torch.onnx.export(
        model, (random(2, 7, EMBED).float(),), dynamo=True, dynamic_shapes=DYNAMIC, verbose=False
    )
    program.save(tmp_path / "layer.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "layer.onnx")
    x = random(3, 11, EMBED).float()
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_traced_and_exported_by_the_older_exporter(model, tmp_path):
    """Both are deprecated by torch, and used: other lengths than the traced one give equal numbers too."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model = model.float().eval()
    short, x = random(2, 7, EMBED).float(), random(3, 11, EMBED).float()
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(torch.jit.trace(model, (short,))(x), expected)
        if model.layer.q_norm is not None:
            return  # that exporter knows no RMSNorm
        path = str(tmp_path / "layer.onnx")
        axes = {"x": {0: "batch", 1: "length"}}
        torch.onnx.export(model, (short,), path, dynamo=False, input_names=["x"], dynamic_axes=axes, opset_version=17)
    (found,) = onnxruntime.InferenceSession(path).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(layer, dtype):
    """All kernels get what autocast says, and the layer's precision is that of the type."""
    layer = layer.float()
    x = random(2, 7, EMBED).float().requires_grad_()
    expected = layer(x, mask=mh.masks.causal())
    with torch.autocast("cpu", dtype=dtype):
        found = layer(x, mask=mh.masks.causal())
    assert found.dtype == dtype
    size = expected.abs().max()
    assert (found - expected).abs().max() < 8 * torch.finfo(dtype).eps * size
    (mine,) = torch.autograd.grad(found.float().square().sum(), x)
    (theirs,) = torch.autograd.grad(expected.square().sum(), x)
    assert (mine - theirs).abs().max() < 16 * torch.finfo(dtype).eps * theirs.abs().max()


def test_autocast_reaches_the_function():
    q, k, v = torch.randn(2, 3, 7, 5), torch.randn(2, 3, 7, 5).bfloat16(), torch.randn(2, 3, 7, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert mh.attention(q, k, v).dtype == torch.bfloat16
        assert mh.attention(q, k, v, softcap=2.0).dtype == torch.bfloat16
        output, _ = mh.inspect(q, k, v)
        assert output.dtype == torch.bfloat16
        torch.testing.assert_close(output, mh.attention(q, k, v), atol=1e-2, rtol=1e-2)


def test_activation_checkpointing():
    layer = randomised(mh.MultiHeadAttention(EMBED, 6, dropout=0.3, softcap=2.0, position=Rotary(4))).train()
    outcomes = []
    for run in (layer, lambda *given, **named: checkpoint(layer, *given, use_reentrant=False, **named)):
        torch.manual_seed(1)
        x = torch.ones(2, 7, EMBED).mul(0.1).requires_grad_()
        output = run(x, mask=mh.masks.causal())
        outcomes.append((output, *torch.autograd.grad(output.square().sum(), [x, *layer.parameters()])))
    for found, expected in zip(*outcomes, strict=True):
        assert torch.equal(found, expected)


def test_per_sample_gradients(model):
    x = random(3, 7, EMBED)
    parameters = dict(model.named_parameters())

    def loss(parameters, sample):
        return functional_call(model, parameters, (sample[None],)).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for number in range(3):
        one = torch.autograd.grad(
            model(x[[number]]).square().sum(), list(parameters.values()), materialize_grads=True, allow_unused=True
        )
        close([found[name][number] for name in parameters], list(one))


def test_vmap_and_jvp(model):
    x, direction = random(2, 2, 7, EMBED)
    close(vmap(model)(torch.stack([x, direction])), torch.stack([model(x), model(direction)]))
    output, found = jvp(model, (x,), (direction,))
    close(output, model(x))
    step = 1e-5
    difference = (model(x + step * direction) - model(x - step * direction)) / (2 * step)
    torch.testing.assert_close(found, difference, atol=1e-7, rtol=1e-6)


def test_made_without_memory_and_filled_later(layer):
    hollow = copy.deepcopy(layer).to("meta")
    assert hollow(random(2, 7, EMBED).to("meta"), mask=mh.masks.causal()).shape == (2, 7, EMBED)
    born = mh.MultiHeadAttention(EMBED, 6, sinks=True, position=T5Bias(6), device="meta")
    assert {parameter.device.type for name, parameter in born.named_parameters() if "position" not in name} == {"meta"}
    hollow.to_empty(device="cpu").load_state_dict(layer.state_dict())
    x = random(2, 7, EMBED)
    assert torch.equal(hollow(x), layer(x))


PROJECTIONS = {False: ["q_proj", "k_proj", "v_proj"], True: ["qkv_proj"]}


@pytest.mark.parametrize("fused", [False, True])
def test_lora_trains_every_projection(fused):
    """pytorch#78109: torch's module never calls out_proj, so nothing wrapped around it learns."""
    peft = pytest.importorskip("peft")
    model = nn.Sequential(made({"output_gate": True, "fused": fused})).float()
    names = [*PROJECTIONS[fused], "out_proj", "gate_proj"]
    x = random(2, 7, EMBED).float()
    before = model(x)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=names))
    torch.testing.assert_close(adapted(x), before)
    adapted(x).square().sum().backward()
    learning = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    for name in names:
        assert any(f"{name}.lora_B" in one for one in learning), name
    assert all("lora" in one for one in learning)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    changed = adapted(x)
    assert not torch.allclose(changed, before)
    torch.testing.assert_close(adapted.merge_and_unload()(x), changed, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_int8_weights(fused):
    """pytorch#118165: torch's module cannot be quantised."""
    quantization = pytest.importorskip("torchao.quantization")
    layer = made({"num_kv_heads": 2, "fused": fused}).float()
    small = copy.deepcopy(layer)
    quantization.quantize_(small, quantization.Int8WeightOnlyConfig())
    for name in (*PROJECTIONS[fused], "out_proj"):
        assert type(getattr(small, name).weight).__name__ == "Int8Tensor", name
    x = random(2, 7, EMBED).float()
    for given in ((x,), (x, random(2, 9, EMBED, seed=2).float())):
        expected, found = layer(*given, mask=mh.masks.causal()), small(*given, mask=mh.masks.causal())
        assert not torch.equal(found, expected)
        assert (found - expected).abs().max() < 0.03 * expected.abs().max()
