"""What an estimate says, held against what an observation then takes; and the budget that it keeps to."""

import math
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity

import multihead as mh
from multihead import AttentionSizes, Statistics, estimate
from multihead.core import AttentionCall
from multihead.errors import ObservationError
from multihead.kernels import chunked, cpu
from multihead.lens import costs, observe
from multihead.lens.costs import Seeing, in_bytes, what_to_leave_out
from multihead.masks import Sizes, causal
from tests.lens.hosts import Block, bart, bert, gpt2, ids, llama, nothing_patched, same_state, stack, state_of, t5

LLAMA_7B = [AttentionSizes(heads=32, kv_heads=8, head_dim=128, causal=True, dtype=torch.bfloat16)] * 32


MODULE = sys.modules["multihead.lens.estimate"]


@pytest.fixture
def timed():
    """For tests that are about time."""


@pytest.fixture(autouse=True)
def no_clock(request, monkeypatch):
    """A second for each pair, where it is not about time."""
    if "timed" not in request.fixturenames:
        monkeypatch.setattr(MODULE, "_seconds_a_pair", lambda *_: 1.0)


def held(layer) -> int:
    """The bytes of all that a layer holds, views as long as they are."""
    return sum(tensor.numel() * tensor.itemsize for name, tensor in layer.tensors().items() if name != "bias")


def peak_bytes(work: Callable[..., object], *arguments: object, **options: object) -> int:
    """The most that torch held at a time of what ``work`` asked for, as its own profiler sees it."""
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work(*arguments, **options)
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


class TestBytes:
    @pytest.mark.parametrize("qk", [True, False])
    @pytest.mark.parametrize(
        "statistics",
        [
            Statistics(),
            Statistics(lse=False, max_score=False, entropy=False, visible=False, top=3),
            Statistics(received=True, offsets=True),
            Statistics(offsets=(0, 2, 9), blocks=(3, 4), sink=True),
            Statistics(blocks=(3, 4), block_peaks=True),
            Statistics.every(top=99, rows=(1, 2, 4), columns=(3, 5)),
        ],
    )
    def test_kept_is_what_the_recording_holds(self, statistics, qk):
        for make in (llama, bert):
            model = make()
            said = estimate(model, length=13, batch=3, statistics=statistics, qk=qk)
            with observe(model, statistics=statistics, qk=qk) as seen:
                model(input_ids=ids(3, 13))
            assert said.kept_bytes == sum(held(layer) for layer in seen.layers)
            assert said.layers == 2

    @pytest.mark.parametrize("make", [t5, bart])
    def test_two_texts_and_a_bias(self, make):
        model = make()
        said = estimate(model, length=7, source_length=11, batch=2)
        with observe(model) as seen:
            model(input_ids=ids(2, 11), decoder_input_ids=ids(2, 7))
        biases = {layer.bias.data_ptr(): layer.bias for layer in seen.layers if layer.bias is not None}
        found = sum(bias.numel() * bias.itemsize for bias in biases.values())
        if make is t5:
            # of the encoder and of the decoder; that between them is zero and kept too
            assert said.kept["bias"] <= found
        assert said.kept_bytes - said.kept.get("bias", 0) == sum(held(layer) for layer in seen.layers)

    @pytest.mark.parametrize(
        "statistics",
        [
            Statistics(),
            Statistics(top=8, received=True),
            Statistics(offsets=True),
            Statistics(offsets=tuple(range(-1500, 1500))),
            Statistics.only(blocks=(2, 3)),
            Statistics.only(blocks=(2, 3), block_peaks=True),
            Statistics.only(blocks=(200, 1), block_peaks=True),
            Statistics.every(),
        ],
    )
    @pytest.mark.parametrize(("heads", "length", "verify"), [(8, 1531, True), (4, 701, False), (32, 211, True)])
    def test_working_bytes_are_a_bound(self, statistics, heads, length, verify):
        """And not ten times too much, for the kernel that takes most."""
        q, k, v = (torch.randn(1, count, length, 32) for count in (heads, 4, 4))
        call = AttentionCall(q, k, v, causal())
        seeing = Seeing(
            sizes=Sizes(1, heads, length, length),
            heads=heads,
            kv_heads=4,
            queries=length,
            head_dim=32,
            value_dim=32,
            dtype=torch.float32,
            statistics=statistics,
            qk=False,
            verify=verify,
        )
        said = seeing.working() + sum(seeing.kept().values())
        peaks = [peak_bytes(kernel.measure, call, statistics, output=verify) for kernel in (chunked, cpu)]
        assert 0.1 * said < max(peaks) <= said

    def test_dearest_first(self):
        assert what_to_leave_out({"lse": 5, "qk": 2 << 30}) == "qk=False saves 2.0 GiB"
        assert what_to_leave_out({"lse": 5, "top": 2048}) == "Statistics(top=0) saves 2.0 KiB"
        assert what_to_leave_out({"lse": 5, "rows": 9}) == "Statistics(rows=None) saves 9 bytes"
        assert what_to_leave_out({"received": 7, "lse": 5}) == "Statistics(received=False) saves 7 bytes"
        assert what_to_leave_out({"blocks": 20, "lse": 5}) == "Statistics(blocks=None) saves 20 bytes"
        # blocks=None alone would be refused
        assert what_to_leave_out({"blocks": 20, "block_peaks": 4}) == "Statistics(block_peaks=False) saves 4 bytes"
        assert in_bytes(5 << 40) == "5.0 TiB"


class TestOperationsAndSeconds:
    def test_the_formula(self):
        sizes = AttentionSizes(heads=6, kv_heads=2, head_dim=5, value_dim=7)
        assert estimate(sizes, length=11, batch=3).flops == 2 * 3 * 6 * 11 * 11 * (5 + 7)
        said = estimate(sizes, length=11, source_length=13, batch=3)
        assert said.flops == 2 * 3 * 6 * 11 * 11 * (5 + 7)
        looking_back = AttentionSizes(heads=6, head_dim=5, causal=True)
        pairs = int(causal().dense(11, 11).sum())
        assert estimate(looking_back, length=11).flops == 2 * 6 * pairs * 10
        across = AttentionSizes(heads=6, head_dim=5, key_text="source")
        assert estimate(across, length=11, source_length=13).flops == 2 * 6 * 11 * 13 * 10

    def test_seconds_are_those_of_each_pair(self):
        assert estimate(LLAMA_7B, length=100, batch=3).seconds == 32 * 3 * 100 * 101 / 2

    @pytest.mark.usefixtures("timed")
    def test_a_run_is_timed(self):
        model = llama()
        short, long = (estimate(model, length=length).seconds for length in (512, 4096))
        assert 0 < short < long
        assert math.isfinite(long)
        assert estimate(bert(), length=64, statistics=Statistics.every(rows=(63,), columns=(9,))).seconds > 0

    @pytest.mark.usefixtures("timed")
    def test_a_sequence_of_equal_layers_is_timed_once(self, monkeypatch):
        real, runs = MODULE.measure, []
        monkeypatch.setattr(MODULE, "measure", lambda *a, **k: runs.append(1) or real(*a, **k))
        estimate(LLAMA_7B, length=64)
        assert len(runs) == MODULE.RUNS + 1


class TestModels:
    @pytest.mark.parametrize("make", [bert, gpt2, llama, t5, bart])
    def test_a_model_shows_its_sizes(self, make):
        model = make()
        state = state_of(model)
        said = estimate(model, length=13)
        assert said.layers == (6 if make in (t5, bart) else 2)
        assert same_state(state, state_of(model))
        assert nothing_patched()

    def test_ours(self):
        from multihead.models import Config, Decoder, Encoder, EncoderDecoder

        sizes = {"vocab_size": 53, "embed_dim": 12, "num_heads": 3}
        assert estimate(Encoder(Config(**sizes, encoder_layers=2)), length=13).layers == 2
        decoder = estimate(Decoder(Config(**sizes, decoder_layers=2)), length=13)
        assert decoder.flops == 2 * 2 * 3 * (13 * 14 // 2) * 8
        both = EncoderDecoder(Config(**sizes, encoder_layers=1, decoder_layers=1))
        said = estimate(both, length=13, source_length=7)
        assert said.flops == 2 * 3 * (7 * 7 + 13 * 14 // 2 + 13 * 7) * 8

    def test_any_model_from_a_short_text(self):
        said = estimate(stack(3), length=13, inputs=torch.randn(1, 4, 14))
        assert (said.layers, said.flops) == (3, 3 * 2 * 7 * (13 * 14 // 2) * 4)

    def test_what_says_nothing(self):
        with pytest.raises(
            ValueError, match="Sequential does not say that it reads token ids: pass inputs= that it can"
        ):
            estimate(stack(1), length=13)
        with pytest.raises(ObservationError, match=r"nothing was seen of Linear; multihead.observe says why"):
            estimate(nn.Linear(3, 3), length=13, inputs=torch.zeros(1, 3))

    @pytest.mark.usefixtures("as_users_run")
    @pytest.mark.parametrize(
        ("given", "options", "error", "message"),
        [
            (7, {}, TypeError, r"estimate takes a torch.nn.Module or AttentionSizes, one for each layer, got an int"),
            ([], {}, TypeError, r"say for example \[mh.AttentionSizes\(heads=32"),
            ([LLAMA_7B[0], "llama"], {}, TypeError, "one for each layer, got a str"),
            (LLAMA_7B, {"length": 0}, ValueError, "length=0 is too small"),
            (LLAMA_7B, {"length": 5.0}, TypeError, "length=5.0 is a float, expected a whole number"),
            (LLAMA_7B, {"batch": -1}, ValueError, "batch=-1 is too small"),
            (LLAMA_7B, {"max_bytes": 0}, ValueError, "max_bytes=0 is too small"),
            (LLAMA_7B, {"statistics": {}}, TypeError, "statistics is a dict, expected a multihead.Statistics"),
            (LLAMA_7B, {"statistics": Statistics(rows=(99,))}, ValueError, "rows 99 out of range"),
        ],
    )
    def test_arguments(self, given, options, error, message):
        with pytest.raises(error, match=message):
            estimate(given, **({"length": 5} | options))

    @pytest.mark.usefixtures("as_users_run")
    def test_sizes(self):
        with pytest.raises(ValueError, match="heads=0 is too small"):
            AttentionSizes(heads=0, head_dim=5)
        with pytest.raises(ValueError, match='query_text=\'middle\' is neither "target" nor "source"'):
            AttentionSizes(heads=3, head_dim=5, query_text="middle")


class TestBudget:
    def test_said_before_the_run(self):
        said = estimate(LLAMA_7B, length=100_000, max_bytes=16 << 30)
        assert said.peak_bytes == said.kept_bytes + said.working_bytes
        assert not said.fits
        words = str(said)
        assert "32 attentions over 100000 tokens, batch 1, on cpu" in words
        assert "recording   31.7 GiB: qk 30.5 GiB, lse 390.6 MiB" in words
        assert (
            "which does not fit in 16.0 GiB: qk=False saves 30.5 GiB, or choose fewer layers, heads or queries" in words
        )
        small = estimate(LLAMA_7B, length=100, max_bytes=16 << 30)
        assert small.fits
        assert "which fits in 16.0 GiB" in str(small)

    def test_half_of_what_is_free(self, monkeypatch):
        monkeypatch.setattr(costs, "free_bytes", lambda device: 1000)
        assert estimate(LLAMA_7B, length=100).max_bytes == 500
        monkeypatch.setattr(costs, "free_bytes", lambda device: None)
        said = estimate(LLAMA_7B, length=100)
        assert said.max_bytes is None
        assert said.fits
        assert "fits in an unknown budget" in str(said)

    def test_what_does_not_fit_is_refused_before_it_is_measured(self, monkeypatch):
        model, x = stack(3), torch.randn(2, 11, 14)
        measured = []
        real = costs.sight_of
        monkeypatch.setattr(costs, "sight_of", lambda *a: measured.append(1) or real(*a))
        with observe(model) as seen:
            model(x)
        one = held(seen.layers[0])
        working = estimate(model, length=11, batch=2, inputs=x).working_bytes
        measured.clear()
        message = (
            r"layer 2 \(2\) would keep .* KiB and take .* [KM]iB to measure, beside .* KiB of what was seen before, "
            r"more than max_bytes=\d+: qk=False saves .* KiB, choose fewer layers=, heads= or queries=, or raise "
        )
        with pytest.raises(ObservationError, match=message), observe(model, max_bytes=3 * one + working - 1):
            model(x)
        assert len(measured) == 2
        assert nothing_patched()
        with observe(model, max_bytes=3 * one + working) as seen:
            model(x)
        assert len(seen.layers) == 3
        # what fewer heads, queries or statistics take does fit
        less = {"heads": [1], "queries": [3], "qk": False, "statistics": Statistics(lse=False), "layers": [0, 2]}
        for name, value in less.items():
            with observe(model, max_bytes=3 * one + working - 1, **{name: value}) as seen:
                model(x)
            assert seen.layers

    def test_runs_add_up(self):
        model, x = Block(), torch.randn(1, 5, 14)
        with observe(model) as seen:
            model(x)
        one = held(seen.layers[0])
        working = estimate(model, length=5, inputs=x).working_bytes
        words = r"beside .* of what was seen before"
        with pytest.raises(ObservationError, match=words), observe(model, max_bytes=one * 3 + working) as seen:
            model(torch.cat([model(x) for _ in range(1000)]))
        assert len(seen.runs) == 3

    def test_nothing_is_skipped_for_want_of_memory(self):
        model = stack(1)
        with (
            pytest.raises(ObservationError, match="max_bytes=1: qk=False saves"),
            observe(model, unsupported="skip", max_bytes=1),
        ):
            model(torch.randn(1, 5, 14))

    def test_half_of_what_is_free_is_the_default(self, monkeypatch):
        monkeypatch.setattr(costs, "free_bytes", lambda device: 1000)
        model = stack(1)
        with (
            pytest.raises(ObservationError, match="more than half of what is free, 500 bytes: qk=False"),
            observe(model),
        ):
            model(torch.randn(1, 5, 14))

    def test_a_bias_counts_once(self):
        model = t5()
        with observe(model) as seen:
            model(input_ids=ids(1, 11), decoder_input_ids=ids(1, 7))
        biases = {layer.bias.data_ptr(): layer.bias for layer in seen.layers if layer.bias is not None}
        kept = sum(held(layer) for layer in seen.layers)
        kept += sum(bias.numel() * bias.itemsize for bias in biases.values())
        working = estimate(model, length=7, source_length=11).working_bytes
        with observe(model, max_bytes=kept + 2 * working) as seen:
            model(input_ids=ids(1, 11), decoder_input_ids=ids(1, 7))
        assert len(seen.layers) == 6

    @pytest.mark.usefixtures("as_users_run")
    def test_arguments(self):
        with pytest.raises(ValueError, match="max_bytes=0 is too small, expected a whole number of at least 1"):
            observe(stack(1), max_bytes=0)
        with pytest.raises(TypeError, match=r"max_bytes=0.5 is a float"):
            observe(stack(1), max_bytes=0.5)


def test_the_estimate_is_held_by_the_observation():
    """What an estimate calls fitting is observed, and what it does not is not."""
    model = llama()
    for slack, fits in ((0, True), (-1, False)):
        said = estimate(model, length=31, batch=2)
        limit = said.peak_bytes + slack
        assert estimate(model, length=31, batch=2, max_bytes=limit).fits == fits
        if fits:
            with observe(model, max_bytes=limit):
                model(input_ids=ids(2, 31))
        else:
            with pytest.raises(ObservationError, match="max_bytes"), observe(model, max_bytes=limit):
                model(input_ids=ids(2, 31))


def test_the_door():
    assert mh.estimate is estimate
    assert isinstance(mh.estimate(LLAMA_7B, length=5), mh.Estimate)
