"""Attention inside compiled code: seen where it still is a call, refused where it is not, and never missed."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from multihead.errors import ObservationError, UnsupportedAttentionError
from multihead.lens import observe
from tests.lens.hosts import nothing_patched, same, stack

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ADVICE = r"with torch.compiler.set_stance\('force_eager'\):"


def fused(q):
    return F.scaled_dot_product_attention(q, q, q)


def multiplied(q):
    """On a CPU unequal widths leave the fused kernel, and the compiler dissolves the call into matrix products."""
    return F.scaled_dot_product_attention(q, q, q[..., :3])


def projected(q):
    return F.multi_head_attention_forward(
        *[q.flatten(0, 1).transpose(0, 1)] * 3,
        embed_dim_to_check=8,
        num_heads=2,
        in_proj_weight=torch.ones(24, 8),
        in_proj_bias=None,
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=torch.ones(8, 8),
        out_proj_bias=None,
        need_weights=False,
    )[0]


def no_attention(q):
    return torch.sin(q) * 2


class Outer(nn.Module):
    """A module whose attention is in a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, q):
        return self.function(q)


@pytest.fixture
def q():
    return torch.randn(1, 2, 7, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("function", [fused, multiplied, projected])
def test_compiled_functions_are_refused_in_every_run(q, function, fullgraph):
    torch._dynamo.reset()
    model = nn.Sequential(Outer(torch.compile(function, fullgraph=fullgraph)))
    with torch.no_grad():
        plain = model(q)
        for _ in range(3):
            with pytest.raises(UnsupportedAttentionError, match=rf"layer 0 \(0\) cannot.*{ADVICE}"), observe(model):
                model(q)
        with warnings.catch_warnings(), observe(model, unsupported="skip"):
            warnings.simplefilter("ignore")
            assert same(model(q), plain)
        with torch.compiler.set_stance("force_eager"), observe(model) as seen:
            model(q)
    assert seen.check().passed
    assert nothing_patched()


def test_a_compiled_function_without_attention_is_no_trouble(q):
    model = nn.Sequential(Outer(torch.compile(no_attention)), Outer(fused))
    with torch.no_grad():
        plain = model(q)
        for _ in range(2):
            with observe(model) as seen:
                assert same(model(q), plain)
    assert [layer.name for layer in seen.layers] == ["1"]
    assert seen.check().passed


def test_a_compiled_forward(q):
    class Compiled(nn.Module):
        @torch.compile
        def forward(self, q):
            return multiplied(q)

    model = Compiled()
    with (
        torch.no_grad(),
        pytest.raises(UnsupportedAttentionError, match="scaled_dot_product_attention inside a function that"),
        observe(model),
    ):
        model(q)


def test_compiled_modules_say_how():
    model = stack(2)
    compiled = torch.compile(stack(2), backend="eager")
    with pytest.raises(ObservationError, match=r"it is compiled. Observe the original module, model._orig_mod"):
        observe(compiled).__enter__()
    outer = nn.Sequential(nn.Identity(), nn.Sequential(compiled))
    with pytest.raises(ObservationError, match=r"its part '1.0' is compiled. Observe .*, model.1.0._orig_mod"):
        observe(outer).__enter__()
    model[1].compile(backend="eager")
    with pytest.raises(
        ObservationError, match=r"its part '1' is compiled in place by .compile\(\). Observe it before it is compiled"
    ):
        observe(model).__enter__()
    assert nothing_patched()


def test_an_observed_module_inside_a_compiled_function(q):
    """The mode is on where the function runs, so what it compiles is noticed there too."""
    inner = Outer(multiplied)

    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner
            self.compiled = torch.compile(lambda q: inner(q) + 1)

        def forward(self, q):
            return self.compiled(q)

    model = Calls()
    with torch.no_grad():
        model(q)
        for _ in range(2):
            with pytest.raises(UnsupportedAttentionError, match=r"that torch.compile compiled"), observe(model):
                model(q)
    assert nothing_patched()
