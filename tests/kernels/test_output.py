"""Every kernel's output and gradients against the float64 formula."""

import pytest
import torch

from multihead import masks
from multihead.core import AttentionCall, reference
from multihead.kernels import attend, choose, chunked, dense, explain, sdpa, tiles
from tests.accuracy import OPTIONS, check, mask_examples, plain, random_bool, random_call

KERNELS = (sdpa, chunked, dense)
"""Those that know every call of the parameters below; ``steps`` and ``packed`` have files of their own."""

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(params=[13, 1 << 21], ids=["tiny tiles", "one tile"])
def tile_scores(request, monkeypatch):
    monkeypatch.setattr(tiles, "TILE_SCORES", request.param)


def inputs(call: AttentionCall) -> list[torch.Tensor]:
    return [tensor for tensor in (call.q, call.k, call.v, call.bias, call.sinks) if tensor is not None]


def compare(kernel, call: AttentionCall) -> None:
    exact, simple = reference(call).output, plain(call).output
    direction = torch.randn(exact.shape, dtype=torch.float64)
    found = kernel.attend(call)
    check(found, exact, simple, f"{kernel.NAME} output")
    gradients = [
        torch.autograd.grad(output, inputs(call), direction.to(output.dtype), allow_unused=True)
        for output in (found, exact, simple)
    ]
    for name, mine, theirs, simple_one in zip(("q", "k", "v", "bias or sinks", "sinks"), *gradients, strict=False):
        check(mine, theirs.double(), simple_one, f"{kernel.NAME} gradient of {name}")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("mask", mask_examples().values(), ids=mask_examples())
def test_dense(mask, options):
    compare(dense, random_call(mask=mask, requires_grad=True, **options))


@pytest.mark.usefixtures("tile_scores")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("mask", mask_examples().values(), ids=mask_examples())
def test_chunked(mask, options):
    compare(chunked, random_call(mask=mask, requires_grad=True, **options))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("mask", mask_examples().values(), ids=mask_examples())
def test_sdpa_or_a_reason(mask, options):
    call = random_call(mask=mask, requires_grad=True, **options)
    reason = sdpa.refuses(call)
    if options.get("softcap") or options.get("sinks"):
        assert "no softcap" in reason or "no learned sinks" in reason
    else:
        assert reason is None
        compare(sdpa, call)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.NAME)
def test_types(kernel, dtype):
    call = random_call(dtype, mask=masks.causal() & masks.padding(random_bool(2, 11)), requires_grad=True)
    assert kernel.attend(call).dtype == dtype
    compare(kernel, call)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.NAME)
@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
def test_groups_of_heads(kernel, kv_heads):
    compare(kernel, random_call(kv_heads=kv_heads, mask=masks.causal(), requires_grad=True))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.NAME)
@pytest.mark.parametrize(("queries", "keys"), [(1, 11), (7, 7), (11, 7), (1, 1)])
def test_causal_at_every_ratio_of_lengths(kernel, queries, keys):
    compare(kernel, random_call(queries=queries, keys=keys, mask=masks.causal(), requires_grad=True))


@pytest.mark.parametrize("sizes", [{"queries": 0}, {"keys": 0}, {"batch": 0}, {"keys": 0, "queries": 0}], ids=str)
def test_nothing_to_attend_is_an_answer(sizes):
    call = random_call(requires_grad=True, **sizes)
    assert choose(call) is chunked
    output = choose(call).attend(call)
    assert output.shape == (call.q.shape[0], 6, call.q.shape[2], 13)
    assert not output.any()
    output.sum().backward()
    assert not call.q.grad.any()


def poisoned(call: AttentionCall, where: str, poison: float) -> AttentionCall:
    """The call with one number in each head of key or value 7 replaced."""
    with torch.no_grad():
        for name in ("k", "v"):
            if where in (name, "both"):
                getattr(call, name)[:, :, 7, 2] = poison
    return call


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("where", ["k", "v", "both"])
@pytest.mark.parametrize("options", [{}, {"sinks": True, "softcap": 2.0}], ids=["plain", "capped"])
class TestHiddenNaN:
    """pytorch#101967: what a query may not see does not reach it."""

    def test_in_the_padding(self, poison, where, options):
        valid = torch.ones(2, 11, dtype=torch.bool)
        valid[:, 7] = False
        call = random_call(mask=masks.padding(valid), requires_grad=True, **options)
        clean = attend(call)
        clean_gradients = torch.autograd.grad(clean.sum(), inputs(call))
        call = poisoned(call, where, poison)
        output = attend(call)
        torch.testing.assert_close(output, clean)
        torch.testing.assert_close(torch.autograd.grad(output.sum(), inputs(call)), clean_gradients)

    def test_in_the_future(self, poison, where, options):
        call = random_call(mask=masks.causal(), queries=11, requires_grad=True, **options)
        clean = attend(call)
        (clean_gradient,) = torch.autograd.grad(clean.sum(), call.q)
        call = poisoned(call, where, poison)
        output = attend(call)
        torch.testing.assert_close(output[:, :, :7], clean[:, :, :7])
        (gradient,) = torch.autograd.grad(output[:, :, :7].sum(), call.q)
        torch.testing.assert_close(gradient[:, :, :7], clean_gradient[:, :, :7])
        if where != "k":
            assert not output[:, :, 7:, 2].isfinite().any()

    def test_without_a_gradient_too(self, poison, where, options):
        valid = torch.ones(2, 11, dtype=torch.bool)
        valid[:, 7] = False
        call = random_call(mask=masks.padding(valid), **options)
        clean = attend(call)
        torch.testing.assert_close(attend(poisoned(call, where, poison)), clean)


def test_dropout_keeps_the_mean_and_backward_drops_the_same():
    call = random_call(torch.float64, dropout=0.5, softcap=2.0, requires_grad=True)
    exact = reference(call).output
    mean = sum(chunked.attend(call).detach() for _ in range(2000)) / 2000
    assert (mean - exact).abs().max() < 0.2
    torch.manual_seed(3)
    first = chunked.attend(call)
    torch.manual_seed(3)
    assert torch.equal(first, chunked.attend(call))

    def with_the_same_drops(q, k, v):
        torch.manual_seed(3)
        return chunked.attend(AttentionCall(q, k, v, dropout=0.5, softcap=2.0))

    assert torch.autograd.gradcheck(with_the_same_drops, (call.q, call.k, call.v))


@pytest.mark.parametrize("part_scores", [17, 1 << 19], ids=["tiny parts", "whole heads"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("requires_grad", [False, True], ids=["in parts", "differentiable"])
def test_weights_are_the_formulas(options, requires_grad, part_scores, monkeypatch):
    monkeypatch.setattr(dense, "PART_SCORES", part_scores)
    for name in ("none", "causal padding", "dense per head", "nothing"):
        call = random_call(mask=mask_examples()[name], requires_grad=requires_grad, **options)
        exact, simple = reference(call).weights, plain(call).weights
        check(dense.weights(call), exact, simple, "weights")
        check(dense.mean_weights(call), exact.mean(1), simple.mean(1), "mean of the weights")
        if requires_grad:
            compare_gradients(call, dense.weights(call), exact, simple)
            compare_gradients(call, dense.mean_weights(call), exact.mean(1), simple.mean(1))


def compare_gradients(call, found, exact, simple):
    direction = torch.randn(exact.shape, dtype=torch.float64)
    for mine, theirs, simple_one in zip(
        *(
            torch.autograd.grad(w, [call.q, call.k], direction.to(w.dtype), retain_graph=True)
            for w in (found, exact, simple)
        ),
        strict=True,
    ):
        check(mine, theirs.double(), simple_one, "gradient of the weights")


def test_a_query_of_nan_that_sees_nothing_is_zero():
    call = random_call(mask=masks.prefix(0))
    call.q[:, :, 3] = torch.nan
    assert not attend(call).any()


def test_a_wide_bias_is_not_rounded():
    bias = torch.tensor([-1e5, -1e5 - 3, -1e5 - 6, -1e5 - 1, 0, 0, 0, 0, 0, 0, 0])
    call = random_call(torch.float16, bias=bias.expand(7, 11).clone(), mask=masks.prefix(4))
    assert "round the bias" in sdpa.refuses(call)
    check(choose(call).attend(call), reference(call).output, reference(call, torch.float32).output.half())


def test_sdpa_is_left_where_it_would_form_all_weights(monkeypatch):
    monkeypatch.setattr(sdpa, "DENSE_MASK", 2 * 6 * 7 * 11 - 1)
    for call in (
        random_call(),  # 5 features in a key, 13 in a value
        random_call(value_dim=5, dropout=0.5),
        random_call(value_dim=5, bias=True, requires_grad=True),
        random_call(value_dim=5, bias=True, mask=masks.causal()),
    ):
        assert "it would form all 924 weights" in sdpa.refuses(call)
    assert sdpa.refuses(random_call(value_dim=5)) is None


def test_choosing_is_explained():
    found = explain(random_call())
    assert list(found) == ["steps", "packed", "sdpa", "cpu", "chunked", "dense"]
    assert (found["sdpa"], found["chunked"]) == ("runs", "could run")
    found = explain(random_call(sinks=True))
    assert (found["sdpa"], found["cpu"]) == ("refuses: it has no learned sinks", "runs")
    assert found["chunked"] == "could run"
    assert found["dense"] == "refuses: it is for what torch traces, and forms all weights"
    found = explain(AttentionCall(*(tensor.to("meta") for tensor in torch.zeros(3, 1, 2, 3, 4)), softcap=2.0))
    assert (found["chunked"], found["dense"]) == ("refuses: torch cannot trace it", "runs")


def test_a_mask_too_large_to_be_dense_goes_to_chunked(monkeypatch):
    monkeypatch.setattr(sdpa, "DENSE_MASK", 7 * 11 - 1)
    assert "the mask would take 77 dense elements" in sdpa.refuses(random_call(mask=masks.sliding_window(3)))
    assert sdpa.refuses(random_call(mask=masks.causal(), queries=11, value_dim=5)) is None
    assert sdpa.refuses(random_call(mask=masks.padding(random_bool(2, 11)), value_dim=5)) is None


def test_no_kernel_says_each_ones_reason(monkeypatch):
    from multihead.errors import NoKernelError

    monkeypatch.setattr(chunked, "refuses", lambda call: "it is switched off")
    reasons = "sdpa: it has no softcap; cpu: it has no dropout; chunked: it is switched off"
    with pytest.raises(NoKernelError, match=reasons):
        choose(random_call(softcap=1.0, dropout=0.5))
