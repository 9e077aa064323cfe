"""torch's names, compiled and exported; each with the numbers of plain eager mode."""

import copy
import warnings

import pytest
import torch
from torch import nn

from multihead import torch_compat
from tests.accuracy import check
from tests.torch_compat.pairs import OTHER_DIMS, L, N, S, double, inputs, numbers, pair, some_seen

# torch's compiler and exporter still use what torch has deprecated
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]

HIDDEN = torch.zeros(N, L, dtype=torch.bool)
HIDDEN[1] = True
"""A key_padding_mask under which the second sequence sees nothing."""


class OutputOnly(nn.Module):
    """One input, tensors out: what an exporter takes."""

    def __init__(self, attention, **arguments):
        super().__init__()
        self.attention, self.arguments = attention, arguments

    def forward(self, x):
        output, weights = self.attention(x, x, x, **self.arguments)
        return output if weights is None else (output, weights)


@pytest.mark.parametrize("need_weights", [True, False])
class TestExport:
    def test_143107_94675_onnx(self, need_weights, tmp_path):
        """In evaluation, without gradients, at other sizes than those exported.

        torch 2.13's exporter that traces programs exports torch's module, too: it leaves the fast path. Its older one,
        which scripts, still fails there on the fused operator.
        """
        pytest.importorskip("onnxscript")
        runtime = pytest.importorskip("onnxruntime")
        _, ours = pair(14, 2, batch_first=True)
        model, x = OutputOnly(ours.eval(), need_weights=need_weights).eval(), torch.randn(N, L, 14)
        sizes = {"x": {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("tokens", max=64)}}
        path = tmp_path / "attention.onnx"
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(model, (x,), dynamo=True, verbose=False, dynamic_shapes=sizes).save(path)
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for shape in ((N, L, 14), (3, S, 14)):
            x = torch.randn(shape)
            found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
            expected = model(x) if need_weights else (model(x),)
            assert len(found) == len(expected)
            for mine, wanted in zip(found, expected, strict=True):
                torch.testing.assert_close(torch.from_numpy(mine), wanted, rtol=1e-5, atol=1e-6)

    def test_143107_torchs_fast_path_is_not_exported_by_scripting(self, need_weights, tmp_path):
        theirs = OutputOnly(pair(14, 2, batch_first=True)[0].eval(), need_weights=need_weights).eval()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(torch.onnx.errors.UnsupportedOperatorError, match="_native_multi_head_attention"):
                torch.onnx.export(theirs, (torch.randn(N, L, 14),), tmp_path / "theirs.onnx", dynamo=False)

    def test_programs(self, need_weights):
        for options in ({}, OTHER_DIMS, {"add_bias_kv": True}):
            _, ours = pair(**options)
            tensors = inputs(ours)
            masked = {"need_weights": need_weights, "attn_mask": some_seen(L, S, seed=3)}
            program = torch.export.export(ours.eval(), tensors, masked).module()
            torch.testing.assert_close(program(*tensors, **masked), ours(*tensors, **masked))


def compiled(module, backend: str = "aot_eager_decomp_partition"):
    """A copy that runs as one graph; what was compiled before does not count towards torch's limit."""
    torch.compiler.reset()
    module = copy.deepcopy(module)
    module.compile(backend=backend, fullgraph=True)
    return module


class TestCompiled:
    @pytest.mark.parametrize("need_weights", [True, False])
    def test_152309_gradients_are_those_of_eager(self, need_weights):
        """torch 2.13 no longer has the wound: on the issue's example compiled gradients err as the eager ones do."""
        for options in ({}, OTHER_DIMS, {"batch_first": True, "add_zero_attn": True}):
            _, ours = pair(**options)
            tensors, traced = inputs(ours), compiled(ours)
            for masked in (
                {},
                {"attn_mask": some_seen(L, S, seed=3)},
                {"attn_mask": torch.randn(L, S)},
                {"is_causal": True},
            ):
                arguments = {"need_weights": need_weights} | masked
                eager, found = numbers(ours, tensors, **arguments), numbers(traced, tensors, **arguments)
                wide = {name: double(value) for name, value in arguments.items()}
                exact = numbers(copy.deepcopy(ours).double(), tuple(x.double() for x in tensors), **wide)
                assert eager.keys() == found.keys() == exact.keys()
                for name, value in exact.items():
                    check(found[name], value, eager[name], name)

    @pytest.mark.parametrize("need_weights", [True, False])
    @pytest.mark.parametrize(
        "hidden", [HIDDEN, torch.zeros(N, L).masked_fill(HIDDEN, -torch.inf)], ids=["bool", "float"]
    )
    def test_41508_a_row_that_sees_nothing(self, hidden, need_weights):
        _, ours = pair()
        x, _, _ = inputs(ours)
        arguments = {"key_padding_mask": hidden, "need_weights": need_weights}
        expected = numbers(ours, (x,), **arguments)
        for name, value in numbers(compiled(ours), (x,), **arguments).items():
            torch.testing.assert_close(value, expected[name])

    def test_one_graph_for_other_sizes(self):
        _, ours = pair()
        torch.compiler.reset()
        traced = torch.compile(ours, backend="eager", fullgraph=True, dynamic=True)
        for queries, keys in ((L, S), (5, 13), (3, 17)):
            tensors = inputs(ours, queries=queries, keys=keys)
            torch.testing.assert_close(traced(*tensors, is_causal=True), ours(*tensors, is_causal=True))

    @pytest.mark.parametrize("training", [True, False])
    def test_inside_torchs_encoder(self, training):
        encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(14, 2, 23, 0.0, batch_first=True), 2)
        torch_compat.replace(encoder.train(training))
        x, padding = torch.randn(N, L, 14), torch.arange(L) >= torch.tensor([[3], [5]])

        def encoded(x):
            return encoder(x, src_key_padding_mask=padding)

        torch.compiler.reset()
        with torch.set_grad_enabled(training):
            found = torch.compile(encoded, backend="aot_eager", fullgraph=True)(x)
            torch.testing.assert_close(found, encoded(x))
