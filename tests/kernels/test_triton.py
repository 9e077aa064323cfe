"""The Triton kernel: every statistic and the output, on a GPU where there is one, else in Triton's interpreter.

The interpreter takes milliseconds for what a GPU does in none, so tiles are small here and sizes a few tiles.
"""

import importlib
import importlib.util
import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch

from multihead import masks
from multihead.core import AXES, AttentionCall, MassOn, Measurements, Statistics, reference
from multihead.errors import NoKernelError
from multihead.kernels import chunked
from multihead.kernels import triton as kernel
from multihead.kernels.gpu import seen
from multihead.kernels.gpu.axis import Axis
from multihead.positions.relative import DistanceSlopes
from tests.accuracy import OPTIONS, SIZES, check, mask_examples, random_bool, random_call
from tests.kernels.definitions import EVERYTHING, check_measured, definitions

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

FEW = {"batch": 1, "heads": 2, "kv_heads": 1}

LONG = {"batch": 1, "heads": 2, "kv_heads": 1, "queries": 19, "keys": 37, "dim": 5, "value_dim": 19}
"""Several tiles of 16 queries and of 16 keys, and no multiple of either."""


@pytest.fixture(scope="module", autouse=True)
def interpreted_programs():
    """Programs that another test loaded as those of a GPU, loaded anew as the interpreter's."""
    if DEVICE == "cpu":
        with pytest.MonkeyPatch.context() as interpreted:
            interpreted.setenv("TRITON_INTERPRET", "1")
            for name in ("scores", "programs"):
                importlib.reload(importlib.import_module(f"multihead.kernels.gpu.{name}"))


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    """Small tiles; and where there is no GPU, Triton's interpreter, for which conftest.py has loaded Triton."""
    monkeypatch.setattr(kernel, "LARGEST_TILE", 16)
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def placed(call: AttentionCall) -> AttentionCall:
    """The call on the device of these tests."""
    if DEVICE == "cpu":
        return call
    tensors = {name: getattr(call, name).to(DEVICE) for name in ("q", "k", "v")}
    if call.sinks is not None:
        tensors["sinks"] = call.sinks.to(DEVICE)
    if isinstance(call.bias, torch.Tensor):
        tensors["bias"] = call.bias.to(DEVICE)
    elif call.bias is not None:
        tensors["bias"] = call.bias.over(tensor.to(DEVICE) for tensor in call.bias.tensors())
    return replace(call, mask=None if call.mask is None else call.mask.to(torch.device(DEVICE)), **tensors)


def measured(call, statistics, **options) -> tuple[torch.Tensor | None, Measurements]:
    """What the kernel finds, brought back."""
    output, found = kernel.measure(placed(call), statistics, **options)
    brought = Measurements.of({name: value.cpu() for name, value in found.named().items()})
    return None if output is None else output.cpu(), brought


def compare(call: AttentionCall, statistics: Statistics) -> None:
    """Every statistic and the output under the one bar."""
    output, found = measured(call, statistics, output=True)
    assert set(found.named()) == set(AXES)
    check_measured(call, statistics, output, found)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("mask", mask_examples())
def test_every_statistic(mask, options):
    # one head is enough to see what an option does, and takes half the time
    sizes = FEW if options == "all" else FEW | {"heads": 1}
    mask = mask_examples(batch=1, heads=sizes["heads"])[mask]
    compare(random_call(mask=mask, **OPTIONS[options], **sizes), EVERYTHING)


@pytest.mark.parametrize("mask", ["padding", "dense per head", "documents"])
def test_every_sequence_and_head_has_its_own(mask):
    compare(random_call(mask=mask_examples()[mask], **OPTIONS["all"]), EVERYTHING)


LONG_STATISTICS = replace(EVERYTHING, blocks=(23, 17), rows=(18, 5), columns=(36, 0, 17))


def long_masks() -> dict[str, masks.Mask | None]:
    queries, keys = LONG["queries"], LONG["keys"]
    return {
        "none": None,
        "causal": masks.causal(),
        "window": masks.sliding_window(6),
        "documents": masks.documents(torch.arange(queries) // 7, torch.arange(keys) // 11),
        "documents out of order": masks.documents(torch.arange(queries) // 5 % 3, torch.arange(keys) // 8 % 4),
        "late padding": masks.padding(torch.arange(keys)[None] >= 18),
        "causal padding": masks.causal() & masks.padding(random_bool(1, keys, seed=1)),
        "causal dense": masks.causal() & masks.dense(random_bool(queries, keys, seed=2)),
        "either": masks.sliding_window(2) | masks.padding(random_bool(1, keys, seed=3, share=0.1)),
    }


@pytest.mark.parametrize(
    ("mask", "blocks"),
    [("causal", (16, 16)), ("none", (5, 7)), ("causal", (18, 30)), ("window", (6, 30)), ("causal", (30, 3))],
    ids=str,
)
def test_blocks_of_any_size_over_several_tiles(mask, blocks):
    call = random_call(mask=long_masks()[mask], **LONG)
    statistics = replace(EVERYTHING, blocks=blocks, top=0, rows=None, columns=None, entropy=False)
    _, found = measured(call, statistics)
    exact, simple = (
        definitions(call, replace(EVERYTHING, blocks=blocks), dtype) for dtype in (torch.float64, torch.float32)
    )
    for name in ("blocks", "block_peaks", "received", "received_mean", "offsets", "lse"):
        check(getattr(found, name), exact[name], simple[name], name)


@pytest.mark.parametrize("mask", long_masks().values(), ids=long_masks())
def test_several_tiles(mask):
    compare(random_call(mask=mask, bias=True, softcap=1.5, **LONG), LONG_STATISTICS)


@pytest.mark.parametrize("mask", ["none", "documents out of order", "causal dense"])
def test_what_is_no_tensor_is_made_part_by_part(mask, monkeypatch):
    monkeypatch.setattr(seen, "PART", 700)
    bias = DistanceSlopes(torch.tensor([0.1, 0.7]))
    call = random_call(mask=long_masks()[mask], bias=bias, **LONG)
    assert len(list(seen.SeenByTiles(call, torch.arange(19)).parts(5))) == 4
    compare(call, replace(LONG_STATISTICS, blocks=(5, 7)))


@pytest.mark.parametrize(("dtype", "dim"), [(torch.bfloat16, 3), (torch.float16, 16), (torch.bfloat16, 19)], ids=str)
def test_types_and_widths(dtype, dim):
    sizes = LONG | {"dim": dim, "value_dim": 22 - dim}
    compare(random_call(dtype, mask=masks.causal(), bias=True, sinks=True, **sizes), LONG_STATISTICS)


@pytest.mark.parametrize("queries", [[1, 4, 6], [6, 1, 4]], ids=str)
@pytest.mark.parametrize("mask", ["causal", "causal padding", "dense", "tree"])
def test_chosen_queries_are_a_cut_of_the_whole(queries, mask):
    call = random_call(mask=mask_examples(batch=1)[mask], bias=True, sinks=True, **FEW)
    statistics, queries = replace(EVERYTHING, rows=(6, 1)), torch.tensor(queries)
    output, found = measured(call, statistics, queries=queries, output=True)
    expected, whole = chunked.measure(call, statistics, queries=queries, output=True)
    torch.testing.assert_close(output, expected)
    for name, value in whole.named().items():
        torch.testing.assert_close(getattr(found, name), value)
    with pytest.raises(ValueError, match=r"rows \[5\] are not among the measured queries"):
        measured(call, replace(EVERYTHING, rows=(5,)), queries=queries)


def test_the_same_bits_every_time():
    call = random_call(torch.float16, mask=long_masks()["causal padding"], bias=True, sinks=True, **LONG)
    (first, one), (second, other) = (measured(call, EVERYTHING, output=True) for _ in range(2))
    assert torch.equal(first, second)
    for name, value in one.named().items():
        assert torch.equal(value, getattr(other, name)), name


def strewn(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers at strange strides, NaN between and around them."""
    around = torch.full([2 * size + 3 for size in reversed(tensor.shape)], torch.nan, dtype=tensor.dtype)
    places = around.permute(*reversed(range(tensor.ndim)))[tuple(slice(2, 2 * size + 2, 2) for size in tensor.shape)]
    return places.copy_(tensor)


def test_any_strides_and_nothing_beyond_the_ends():
    call = random_call(mask=masks.sliding_window(5), bias=True, sinks=True, **LONG)
    tensors = {name: strewn(getattr(call, name)) for name in ("q", "k", "v", "bias", "sinks")}
    statistics = LONG_STATISTICS
    (output, found), (far, strange) = (
        measured(each, statistics, output=True) for each in (call, replace(call, **tensors))
    )
    assert torch.equal(output, far)
    for name, value in found.named().items():
        assert torch.equal(value, getattr(strange, name)), name


def test_expanded_tensors_are_read_where_they_are():
    call = random_call(**FEW, mask=masks.dense(random_bool(1, 1, 7, 1)))
    call = replace(call, k=call.k[:, :, :1].expand_as(call.k), bias=torch.randn(2, 1, 11))
    compare(call, EVERYTHING)


@pytest.mark.parametrize("mask", ["causal", "dense", "tree"])
def test_what_is_hidden_does_not_leak(mask):
    mask = {"causal": masks.causal(), "dense": masks.dense(random_bool(7, 11, seed=2))}.get(mask, ~masks.prefix(3))
    call = random_call(mask=mask, **FEW)
    hidden = ~mask.dense(7, 11).expand(7, 11)
    nobody = hidden.all(0)
    k, v = call.k.clone(), call.v.clone()
    k[:, :, nobody], v[:, :, nobody] = torch.nan, torch.inf
    clean, measurements = measured(call, EVERYTHING, output=True)
    dirty, others = measured(replace(call, k=k, v=v), EVERYTHING, output=True)
    assert torch.equal(clean, dirty)
    for name, value in measurements.named().items():
        assert torch.equal(value, getattr(others, name)), name


@pytest.mark.parametrize("numbers", [(torch.nan,), (torch.inf,), (-torch.inf,), (torch.inf, -torch.inf)], ids=str)
def test_a_value_that_is_no_number_reaches_who_sees_it(numbers):
    call = random_call(mask=masks.causal(), **FEW)
    v = call.v.clone()
    for place, number in enumerate(numbers):
        v[0, 0, 8 + place, 3 + place // 2] = number
    call = replace(call, v=v)
    output, _ = measured(call, Statistics(), output=True)
    torch.testing.assert_close(output, reference(call).output.float(), equal_nan=True)


def test_a_visible_nan_is_a_peak():
    call = random_call(mask=masks.causal(), **FEW)
    k = call.k.clone()
    k[:, :, 9] = torch.nan
    _, found = measured(replace(call, k=k), Statistics.only(blocks=(3, 3), block_peaks=True))
    # the causal mask shows key 9 to the queries from 5 on, all of whose weights are then NaN
    assert not found.block_peaks[:, :, 0].isnan().any()
    assert found.block_peaks[:, :, 1:].isnan().all()


def test_ties_go_to_the_lower_key_wherever_it_stands():
    call = random_call(**LONG)
    k = call.k.clone()
    k[:, :, [3, 15, 16, 31, 33, 36]] = 3 * k[:, :, :1]
    for each in (replace(call, k=k), replace(call, k=torch.zeros_like(k))):
        _, found = measured(each, Statistics(top=7))
        _, expected = chunked.measure(each, Statistics(top=7))
        assert torch.equal(found.top_keys, expected.top_keys)
    assert found.top_keys[0, 0, 0].tolist() == list(range(7))


def test_top_has_no_more_than_there_are_keys():
    _, found = measured(random_call(**FEW), Statistics(top=50))
    assert found.top_weights.shape == (1, 2, 7, 11)
    assert (found.top_weights.diff() <= 0).all()


def test_steep_scores_and_far_bins():
    call = random_call(scale=300.0, mask=masks.causal(), sinks=True, **FEW)
    compare(call, EVERYTHING)
    bins = replace(EVERYTHING, offsets=(-(1 << 40), -3, 2, 3, 1 << 40))
    compare(random_call(**FEW), bins)


@pytest.mark.parametrize("number", [-torch.inf, torch.finfo(torch.float32).min, -1e30], ids=str)
def test_a_bias_may_hide_too(number):
    call = random_call(**FEW)
    hidden = ~random_bool(7, 11, seed=2)
    hidden[3] = True
    call = replace(call, bias=torch.zeros(7, 11).masked_fill(hidden, number))
    output, found = measured(call, EVERYTHING, output=True)
    expected, whole = chunked.measure(call, EVERYTHING, output=True)
    torch.testing.assert_close(output, expected)
    for name, value in whole.named().items():
        torch.testing.assert_close(getattr(found, name), value, msg=name)


def test_nothing_that_was_not_asked_for():
    output, found = measured(random_call(**FEW), Statistics(lse=False, max_score=False, entropy=False, visible=False))
    assert output is None
    assert found == Measurements()


@pytest.mark.parametrize("sizes", [{"queries": 0}, {"keys": 0}, {"batch": 0}, {"dim": 0}, {"value_dim": 0}], ids=str)
@pytest.mark.parametrize("mask", ["none", "causal", "prefix model", "dense"])
def test_nothing_to_measure_is_an_answer(sizes, mask):
    full = SIZES | sizes
    call = random_call(mask=mask_examples(full["queries"], full["keys"])[mask], **(FEW | sizes))
    statistics = replace(EVERYTHING, rows=(), columns=())
    output, found = measured(call, statistics, output=True)
    expected, whole = chunked.measure(call, statistics, output=True)
    torch.testing.assert_close(output, expected)
    for name, value in whole.named().items():
        torch.testing.assert_close(getattr(found, name), value, msg=name)


def test_a_gradient_is_neither_needed_nor_made():
    call = random_call(requires_grad=True, bias=True, sinks=True, **FEW)
    output, found = measured(call, EVERYTHING, output=True)
    assert not output.requires_grad
    assert not any(value.requires_grad for value in found.named().values())


@pytest.mark.parametrize(
    ("mask", "numbers"),
    [
        (masks.causal(), 0),
        (masks.causal() & masks.sliding_window(5) & masks.padding(torch.arange(37)[None] > 3), 0),
        # one row for all queries
        (masks.causal() & masks.padding(torch.arange(37)[None] % 3 > 0), 37),
        (masks.dense(torch.ones(19, 37, dtype=torch.bool)), 19 * 37),
    ],
    ids=["causal", "ranges", "scattered padding", "dense"],
)
def test_a_mask_becomes_no_larger_than_it_is(mask, numbers):
    call = random_call(mask=mask, **LONG)
    (part,) = seen.SeenByTiles(call, torch.arange(19)).parts(16)
    assert (0 if part.mask is None else part.mask.tensor.numel()) == numbers
    if isinstance(mask, masks.Dense):
        assert part.mask.tensor.data_ptr() == mask.allowed.data_ptr()


@pytest.mark.parametrize(
    ("mask", "share"),
    [
        (masks.causal(), 0.55),
        (masks.sliding_window(64), 0.2),
        (masks.documents(torch.arange(640) // 100), 0.3),
        (masks.causal() & ~masks.prefix(64), 0.55),
    ],
    ids=["causal", "window", "documents", "not a range"],
)
def test_tiles_that_nobody_sees_are_left_out(mask, share):
    starts = torch.arange(0, 640, 64)
    call = random_call(mask=mask, **(LONG | {"queries": 640, "keys": 640}))
    first, stop = seen.SeenByTiles(call, torch.arange(640)).limits(starts, starts + 64)
    assert (stop - first).sum() <= share * 640 * len(starts)
    begin, end = kernel._reached(first, stop, starts, starts + 64)
    assert (end - begin).sum() <= (share + 0.05) * len(starts) ** 2
    tiles = mask.dense(640, 640).unflatten(1, (10, 64)).unflatten(0, (10, 64)).any(3).any(1)
    numbers = torch.arange(10)[:, None]
    assert not (tiles & ((numbers < begin[0, 0]) | (numbers >= end[0, 0]))).any()


@pytest.mark.parametrize("block", [1, 3, 16, 17, 40, 200])
def test_tiles_hold_whole_blocks(block):
    axis = Axis.of(53, block, 16)
    starts, stops = axis.ends(torch.device("cpu"))
    tokens = [
        token for start, stop in zip(starts.tolist(), stops.tolist(), strict=True) for token in range(start, stop)
    ]
    assert tokens == list(range(53))
    assert (stops - starts).max() <= 16
    assert all(
        start // block == (stop - 1) // block or axis.tiles == 1 for start, stop in zip(starts, stops, strict=True)
    )


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("options", "statistics", "reason"),
    [
        ({"dtype": torch.float64}, {}, "in float32, for inputs in float32, bfloat16 or float16, and this is float64"),
        ({"dim": 257}, {}, "heads of up to 256 features, and this has 257"),
        ({"value_dim": 300}, {}, "heads of up to 256 features, and this has 300"),
        ({}, {"top": 65}, "up to 64 largest weights, and top=65"),
        ({}, {"own": (MassOn("marks", torch.ones(11)),)}, "it knows no statistics of a user's own"),
        ({}, {"offsets": tuple(range(1025))}, "up to 1023 bins of distances, and offsets has 1024"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_refuses_with_a_reason(options, statistics, reason):
    call, statistics = placed(random_call(**options)), Statistics(**statistics)
    assert reason in kernel.refuses(call, statistics)
    with pytest.raises(NoKernelError, match=f"the Triton kernel does not measure this: .*{reason}"):
        kernel.measure(call, statistics)
    assert kernel.refuses(placed(random_call()), Statistics()) is None
    assert kernel.refuses(placed(random_call())) is None


def test_refuses_a_processor_without_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert kernel.refuses(random_call()) == "it is for NVIDIA GPUs, and this is cpu"
    monkeypatch.setattr(kernel, "_installed", lambda: False)
    assert kernel.refuses(random_call()) == "Triton is not installed"


def in_a_new_interpreter(program: str, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        env=kept | environment,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_importing_the_kernel_does_not_import_triton():
    program = """
        import sys
        import multihead.kernels.triton
        sys.stdout.write(str("triton" in sys.modules))
    """
    assert in_a_new_interpreter(program) == "False"


@pytest.mark.skipif(DEVICE == "cuda", reason="there is a GPU: the programs have been compiled for it")
def test_the_programs_compile_for_a_gpu(tmp_path):
    """What the interpreter runs, a compiler need not accept: here it does, for a GPU that is not there."""
    program = """
        import sys
        from types import SimpleNamespace
        import torch
        from triton.backends.compiler import GPUTarget
        from triton.runtime import driver
        from multihead import masks
        from multihead.core import Statistics
        from multihead.kernels import triton as kernel
        from multihead.kernels.gpu import programs
        from tests.accuracy import random_bool, random_call

        driver.set_active(SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", 90, 32),
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
        ))

        class Compiled:
            def __init__(self, program):
                self.program = program

            def __getitem__(self, grid):
                return self.compile

            def compile(self, *arguments, **options):
                compiled = self.program.run(*arguments, grid=(1,), warmup=True, **options)
                assert compiled.metadata.shared < 100_000, compiled.metadata.shared
                sys.stdout.write(f"{self.program.__name__} {len(compiled.asm['cubin']) > 0}\\n")

        for name in ("first_pass", "second_pass", "chosen_weights"):
            setattr(programs, name, Compiled(getattr(programs, name)))
        kernel.refuses = lambda *asked: None
        sizes = {"queries": 70, "keys": 130, "dim": 128, "value_dim": 64}
        mask = masks.causal() & masks.dense(random_bool(70, 130))
        call = random_call(torch.bfloat16, mask=mask, softcap=2.0, bias=True, sinks=True, **sizes)
        call.v[0, 0, 0, 0] = torch.nan
        kernel.measure(call, Statistics.every(), output=True)
        kernel.measure(random_call(torch.float16, **sizes), Statistics(), output=True)
    """
    lines = in_a_new_interpreter(program, TRITON_CACHE_DIR=str(tmp_path)).splitlines()
    assert lines == [f"{name} True" for name in ("first_pass", "second_pass", *2 * ["chosen_weights"], "first_pass")]
