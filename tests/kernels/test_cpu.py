"""The CPU kernel where it differs from others: chunks and jobs, threads, numbers that are none, what it refuses."""

import os
import platform
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch

from multihead import biases, masks
from multihead.core import AttentionCall, Statistics, reference
from multihead.kernels import attend, attend_with_weights, chunked, cpu, explain_measuring
from multihead.kernels.native import request
from tests.accuracy import check, mask_examples, plain, random_bool, random_call
from tests.kernels.definitions import check_measured

QUERIES, KEYS = 307, 2203
"""More than two jobs of 128 queries and a chunk of 2048 keys, and no multiple of either."""

LONG = {"batch": 1, "heads": 4, "kv_heads": 2, "queries": QUERIES, "keys": KEYS, "dim": 11, "value_dim": 7}

SHORT = {**LONG, "batch": 2, "keys": 1100}
"""Several jobs and one chunk: keys stay packed from one job to the next."""


def long_masks() -> dict[str, masks.Mask | None]:
    return {
        "none": None,
        "causal": masks.causal(),
        "window": masks.sliding_window(1300),
        "padding": masks.padding(torch.arange(KEYS)[None] >= 1100),
        "documents": masks.documents(torch.arange(QUERIES) // 50, torch.arange(KEYS) // 400),
        "scattered padding": masks.padding(random_bool(1, KEYS, share=0.5)),
        "causal and dense": masks.causal() & masks.dense(random_bool(QUERIES, KEYS, share=0.3)),
        "either": masks.sliding_window(40) | masks.padding(random_bool(1, KEYS, share=0.1)),
    }


@pytest.mark.parametrize("block", [64, 50, 200, 997], ids=lambda block: f"blocks of {block}")
@pytest.mark.parametrize("mask", long_masks().values(), ids=long_masks())
def test_every_statistic_over_several_chunks_and_jobs(mask, block):
    options = {50: {"softcap": 5.0}, 64: {"bias": True}, 200: {"sinks": True}, 997: {}}[block]
    call = random_call(mask=mask, **options, **LONG)
    asked = Statistics.every(top=9, block=block, rows=(306, 5), columns=(2202, 0, 1024))
    output, found = cpu.measure(call, asked, output=True)
    check_measured(call, asked, output, found, same_keys=0.999)


@pytest.mark.parametrize("mask", ["none", "causal", "window"])
def test_every_statistic_over_several_jobs_of_one_chunk(mask):
    made = {"none": None, "causal": masks.causal(), "window": masks.sliding_window(300)}[mask]
    call = random_call(mask=made, **SHORT)
    asked = Statistics.every(top=9, block=64, rows=(306, 5), columns=(1099, 0, 700))
    output, found = cpu.measure(call, asked, output=True)
    check_measured(call, asked, output, found, same_keys=0.999)


@pytest.mark.parametrize("keys", [1, 15, 16, 17, 33, 2048, 2049])
@pytest.mark.parametrize(("dim", "value_dim"), [(1, 1), (16, 16), (17, 48), (33, 32), (64, 31), (80, 130)])
def test_sizes_that_fill_tiles_and_that_do_not(keys, dim, value_dim):
    sizes = {"batch": 2, "heads": 4, "kv_heads": 2, "queries": 9, "keys": keys, "dim": dim, "value_dim": value_dim}
    call, asked = random_call(**sizes), Statistics.every(top=3, rows=(8,), columns=(keys - 1,))
    cpu.measure(call, asked, output=True)
    request._local.scratch.fill_(torch.nan)
    output, found = cpu.measure(call, asked, output=True)
    check_measured(call, asked, output, found, same_keys=0.99)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="it compiles for other processors of this kind")
@pytest.mark.parametrize(("name", "features", "lanes"), [("haswell", "+avx,+avx2,+fma", 8), ("x86-64", "", 4)])
def test_processors_with_narrower_registers(tmp_path, name, features, lanes):
    code = (
        "import torch; from multihead import masks; from multihead.core import AttentionCall, Statistics, reference\n"
        "from multihead.kernels import cpu; q = torch.randn(1, 2, 70, 37)\n"
        "call = AttentionCall(q, q, q[..., :21], mask=masks.causal())\n"
        "assert cpu.refuses(call) is None, cpu.refuses(call)\n"
        "output, found = cpu.measure(call, Statistics(top=3), output=True)\n"
        "exact = reference(call); torch.testing.assert_close(output, exact.output.float(), atol=1e-5, rtol=1e-5)\n"
        "best = exact.weights.topk(3).values.float()\n"
        "torch.testing.assert_close(found.top_weights, best, atol=1e-6, rtol=1e-5)\n"
        "from multihead.kernels.native.compiled.products import LANES; print(LANES)"
    )
    chosen = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | chosen, check=False
    )
    assert done.stdout.strip() == str(lanes), done.stderr


def test_many_equal_scores():
    """Among more of them than a list holds, the first keys are the largest."""
    call = random_call(**SHORT)
    call = replace(call, q=torch.zeros_like(call.q))
    for count in (5, 8, 9, 20):
        _, found = cpu.measure(call, Statistics(top=count))
        assert (found.top_keys == torch.arange(count)).all()


def test_ties_go_to_the_lower_key_wherever_it_stands():
    call = random_call(**LONG)
    k = call.k.clone()
    # the same key in one group, in several groups and in several chunks
    k[:, :, [3, 67, 70, 131, 1500, 1501, 2202]] = 3 * k[:, :, :1]
    call = replace(call, k=k)
    _, found = cpu.measure(call, Statistics(top=6))
    order = (call.q @ k.repeat_interleave(2, 1).mT).sort(dim=-1, descending=True, stable=True).indices
    assert torch.equal(found.top_keys, order[..., :6]) or (found.top_keys == order[..., :6]).float().mean() > 0.999
    highest = (found.top_keys[..., 0] == 3).float().mean()
    assert highest > 0.1
    tied = found.top_keys[found.top_keys[..., 0] == 3]
    assert (tied == torch.tensor([3, 67, 70, 131, 1500, 1501])).all()


ORDERS = {
    "rising": lambda keys: torch.arange(keys).float(),
    "falling": lambda keys: -torch.arange(keys).float(),
    "equal": torch.zeros,
    "few values": lambda keys: torch.arange(keys).remainder(7).float(),
    "zeros of both signs": lambda keys: torch.where(torch.arange(keys) % 3 == 0, -0.0, 0.0),
    "infinite but for some": lambda keys: torch.where(torch.arange(keys) % 400 == 5, -1.0, -torch.inf),
}


@pytest.mark.parametrize("count", [1, 8, 9], ids=lambda count: f"top {count}")
@pytest.mark.parametrize("keys", [5, 64, 700, KEYS])
@pytest.mark.parametrize("order", ORDERS)
def test_the_top_of_scores_in_any_order(order, keys, count):
    """Among them those in which every score is larger than all before it, or none is."""
    values = ORDERS[order](keys)
    q, k = torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, keys, 2)
    call = AttentionCall(q, k, k, bias=values[None, None, None])
    _, found = cpu.measure(call, Statistics(top=count))
    expected = values.sort(descending=True, stable=True)
    held = min(count, int(values.isfinite().sum()))
    assert (found.top_keys[..., :held] == expected.indices[:held]).all()
    assert (found.top_keys[..., held:] == -1).all()
    torch.testing.assert_close(found.top_weights[0, 0, 0, :held], values.softmax(0)[expected.indices[:held]])


@pytest.mark.parametrize("queries", [[0], [306, 2, 150], list(range(100, 300))], ids=["one", "three", "many"])
@pytest.mark.parametrize("mask", ["none", "causal", "documents", "scattered padding", "either"])
def test_chosen_queries_are_a_cut_of_the_whole(queries, mask):
    call = random_call(mask=long_masks()[mask], **LONG)
    asked = Statistics(top=3, received=True, columns=(1, 2000))
    queries = torch.tensor(queries)
    output, found = cpu.measure(call, asked, queries=queries, output=True)
    every, whole = cpu.measure(call, replace(asked, rows=tuple(queries.tolist())), output=True)
    torch.testing.assert_close(output, every[:, :, queries])
    for name in ("lse", "entropy", "visible", "top_weights", "columns"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name)[:, :, queries])
    torch.testing.assert_close(found.received, whole.rows.sum(2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("block", [64, 200], ids=["jobs of whole blocks", "blocks of several jobs"])
def test_the_same_bits_twice_and_with_any_number_of_threads(block):
    call = random_call(mask=masks.causal(), **LONG)
    before = torch.get_num_threads()
    answers = []
    try:
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)
            output, found = cpu.measure(call, Statistics.every(block=block), output=True)
            answers.append({"output": output, **found.named()})
    finally:
        torch.set_num_threads(before)
    for answer in answers[1:]:
        for name, value in answer.items():
            assert torch.equal(value, answers[0][name]), name


def test_the_same_mean_of_weights_with_any_number_of_threads():
    call = random_call(mask=masks.causal(), **(SHORT | {"queries": 1100}))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(cpu.attend_with_weights(call, mean=True))
    finally:
        torch.set_num_threads(before)
    for output, mean in found[1:]:
        assert torch.equal(output, found[0][0])
        assert torch.equal(mean, found[0][1])


def test_the_default_type_does_not_matter():
    call, asked = random_call(), Statistics.every(rows=(2,), columns=(3,), block=4)
    expected = cpu.measure(call, asked, output=True)
    mean = cpu.attend_with_weights(call, mean=True)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        output, found = cpu.measure(call, asked, output=True)
        again = cpu.attend_with_weights(call, mean=True)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(output, expected[0])
    assert all(torch.equal(value, expected[1].named()[name]) for name, value in found.named().items())
    assert torch.equal(again[1], mean[1])


def test_several_python_threads_at_once():
    calls = [random_call(seed=seed, mask=masks.causal(), **LONG) for seed in range(4)]
    expected = [cpu.measure(call, Statistics.every(), output=True) for call in calls]
    found: list = [None] * 4

    def work(number: int) -> None:
        for _ in range(5):
            found[number] = cpu.measure(calls[number], Statistics.every(), output=True)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for (output, mine), (exact, theirs) in zip(found, expected, strict=True):
        assert torch.equal(output, exact)
        assert torch.equal(mine.received, theirs.received)


@pytest.mark.parametrize("layout", ["tokens before heads", "every second token", "reversed features", "one for all"])
def test_tensors_lie_in_memory_as_they_like(layout):
    call = random_call(mask=masks.causal())

    def laid_out(tensor):
        if layout == "tokens before heads":
            return tensor.transpose(1, 2).contiguous().transpose(1, 2)
        if layout == "every second token":
            return tensor.repeat_interleave(2, 2)[:, :, ::2]
        if layout == "reversed features":
            return tensor.flip(-1).contiguous().mT.contiguous().mT.flip(-1)
        return tensor[:1, :1].expand_as(tensor)

    call = replace(call, **{name: laid_out(getattr(call, name)) for name in "qkv"})
    output, _ = cpu.measure(call, Statistics(), output=True)
    check(output, reference(call).output, plain(call).output)


@pytest.mark.parametrize("shape", [(7, 11), (2, 1, 1, 11), (1, 6, 7, 1), (1, 1, 1, 1)], ids=str)
def test_biases_and_masks_are_read_where_they_are(shape):
    bias = torch.randn(shape)
    allowed = random_bool(*shape, seed=5, share=0.7)
    call = random_call(bias=bias, mask=masks.dense(allowed) & masks.causal())
    output, _ = cpu.measure(call, Statistics(), output=True)
    check(output, reference(call).output, plain(call).output)
    call = random_call(bias=bias.mT.contiguous().mT.half(), mask=masks.dense(allowed))
    output, _ = cpu.measure(call, Statistics(), output=True)
    check(output, reference(call).output, plain(call).output)


class Slope(biases.Bias):
    """-|distance|, never kept whole."""

    asked = 0

    def values(self, queries, keys, sizes):
        Slope.asked = max(Slope.asked, len(queries) * len(keys))
        return -(queries[:, None] + sizes.offset - keys).abs()[None, None].float()

    def tensors(self):
        yield torch.ones(1)

    def over(self, tensors):
        return self


def test_a_bias_object_is_asked_by_parts(monkeypatch):
    monkeypatch.setattr(request, "TILE", 128 * KEYS)
    call = random_call(bias=Slope(), **LONG)
    output, _ = cpu.measure(call, Statistics(), output=True)
    assert 0 < Slope.asked < QUERIES * KEYS
    check(output, reference(call).output, plain(call).output)


@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_what_is_no_number_reaches_whom_it_should(where, number):
    call = random_call(mask=masks.causal(), **LONG)
    tensor = getattr(call, where).clone()
    tensor[0, 1, 300, 0] = number
    call = replace(call, **{where: tensor})
    output, found = cpu.measure(call, Statistics(top=2), output=True)
    expected, theirs = chunked.measure(call, Statistics(top=2), output=True)
    torch.testing.assert_close(output, expected, equal_nan=True)
    torch.testing.assert_close(found.lse, theirs.lse, equal_nan=True)
    assert not output.isfinite().all()
    assert output.isfinite().any()


@pytest.mark.parametrize("where", ["k", "v"])
def test_a_hidden_nan_reaches_nobody(where):
    call = random_call(mask=masks.sliding_window(5), **LONG)
    tensor = getattr(call, where).clone()
    tensor[:, :, :1000] = torch.nan
    output, found = cpu.measure(replace(call, **{where: tensor}), Statistics.every(), output=True)
    check(output, reference(call).output, plain(call).output)
    assert all(not value.isnan().any() for value in found.named().values() if value.is_floating_point())


def test_scores_far_apart_keep_their_order():
    call = random_call(**LONG)
    call = replace(call, q=1e4 * call.q)
    output, found = cpu.measure(call, Statistics(top=1), output=True)
    check(output, reference(call).output, plain(call).output)
    assert (found.top_weights > 0.1).all()


@pytest.mark.parametrize("options", [{}, {"mask": masks.causal()}, {"mask": mask_examples()["tree"], "sinks": True}])
@pytest.mark.parametrize("mean", [True, False])
def test_output_and_all_weights_from_one_pass(options, mean):
    call = random_call(**options)
    output, weights = attend_with_weights(call, mean=mean)
    exact, simple = reference(call), plain(call)
    check(output, exact.output, simple.output, "output")
    pairs = [(found.weights.mean(1) if mean else found.weights) for found in (exact, simple)]
    check(weights, *pairs, "weights")
    again, _ = cpu.attend_with_weights(call, mean=mean)
    assert torch.equal(output, again)


def test_weights_where_something_is_no_number():
    call = random_call(mask=masks.causal())
    v = call.v.clone()
    v[:, :, 10] = torch.nan
    call = replace(call, v=v)
    assert cpu.attend_with_weights(call, mean=False) is None
    output, weights = attend_with_weights(call, mean=False)
    torch.testing.assert_close(output, attend(call), equal_nan=True)
    assert not weights.isnan().any()


def test_what_it_refuses():
    q = torch.zeros(1, 2, 3, 4)
    refused = {
        "it is for float32, bfloat16 and float16 on a CPU": AttentionCall(q.double(), q.double(), q.double()),
        "it has no dropout": AttentionCall(q, q, q, dropout=0.5),
        "some axis is empty": AttentionCall(q[:, :, :0], q, q),
        "it has no backward": AttentionCall(q.clone().requires_grad_(), q, q),
    }
    for reason, call in refused.items():
        assert cpu.refuses(call) == reason
    assert explain_measuring(AttentionCall(q, q, q)) == {"cpu": "runs", "chunked": "could run"}
    assert explain_measuring(refused["it is for float32, bfloat16 and float16 on a CPU"])["chunked"] == "runs"


def test_without_a_place_to_keep_the_compiled_code(tmp_path):
    """A machine whose folders cannot be written compiles anew, and says so."""
    code = (
        "import logging, torch; logging.basicConfig(); import numba.core.caching as caching\n"
        "for locator in caching.CacheImpl._locator_classes: locator.from_function = classmethod(lambda *a: None)\n"
        "from multihead.kernels import cpu; from multihead.core import AttentionCall, Statistics\n"
        "q = torch.randn(1, 2, 5, 4); call = AttentionCall(q, q, q)\n"
        "assert cpu.refuses(call) is None, cpu.refuses(call)\n"
        "print(cpu.measure(call, Statistics())[1].lse.shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.strip() == "torch.Size([1, 2, 5])", done.stderr
    assert "compiled the CPU kernel in" in done.stderr


@pytest.mark.parametrize("number", [torch.finfo(torch.float32).min, -1e30, -torch.inf])
def test_rows_hidden_by_a_bias(number):
    """Scores so low that nothing can be added to them: the softmax is that of what is left of them."""
    bias = torch.zeros(7, 11)
    bias[2], bias[4, 3:] = number, number
    call = random_call(bias=bias)
    output, found = cpu.measure(call, Statistics.every(rows=(2, 4), columns=(1,)), output=True)
    exact, simple = reference(call), plain(call)
    check(output, exact.output, simple.output, "output")
    check(found.rows, exact.weights[:, :, [2, 4]], simple.weights[:, :, [2, 4]], "rows")
    best = exact.weights.sort(dim=-1, descending=True, stable=True).values[..., :8]
    check(found.top_weights, best, simple.weights.topk(8).values, "top")
    check(found.entropy, torch.special.entr(exact.weights).sum(-1), torch.special.entr(simple.weights).sum(-1))
