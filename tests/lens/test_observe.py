"""What is chosen, what counts as a run, and what becomes a recording."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from multihead import Statistics
from multihead.errors import ObservationError
from multihead.lens import observe
from multihead.recording import load
from tests.lens.hosts import Block, Caller, in_thread, nothing_patched, observed, same_state, stack, state_of


@pytest.fixture
def x():
    return torch.randn(2, 11, 14, generator=torch.Generator().manual_seed(0))


class TestSelection:
    def test_layers_by_number_and_pattern(self, x):
        model = nn.ModuleDict({"encoder": stack(3), "decoder": stack(2)})
        whole = nn.Sequential(*model.values())
        whole.__dict__["named"] = 1
        for layers, wanted in [
            (None, [0, 1, 2, 3, 4]),
            (2, [2]),
            ([4, 0], [0, 4]),
            ("0", [0, 1, 2]),
            ("1.*", [3, 4]),
            (["*.0", 1], [0, 1, 3]),
        ]:
            seen = observed(whole, x, options={"layers": layers})
            assert [layer.index for layer in seen.layers] == wanted
            assert seen.check().passed
        assert [layer.name for layer in seen.layers] == ["0.0", "0.1", "1.0"]

    def test_heads_by_layer_choose_the_layers(self, x):
        seen = observed(stack(3), x, options={"heads": {2: [1, 5], "0": [6]}})
        assert [(layer.index, layer.heads) for layer in seen.layers] == [(0, (6,)), (2, (1, 5))]
        seen = observed(stack(3), x, options={"heads": {2: [1, 5]}, "layers": [1, 2]})
        assert [(layer.index, layer.heads) for layer in seen.layers] == [(1, tuple(range(7))), (2, (1, 5))]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"layers": [9]}, "layers 9 out of range: this model has 3 attention layers, 0 to 2"),
            ({"layers": [1, 7, 9]}, "layers 7 and 9 out of range: this model has 3 attention layers, 0 to 2"),
            ({"heads": {9: [0]}}, "layers 9 out of range: this model has 3"),
            ({"layers": ["3"]}, r"layers '3' matches no attention of this model: try '0', '1' or '2'"),
            ({"heads": [7]}, r"layer 0 \(0\): heads 7 out of range: valid are 0 to 6"),
            ({"heads": {1: [7]}}, r"layer 1 \(1\): heads 7 out of range: valid are 0 to 6"),
            ({"queries": [11]}, r"layer 0 \(0\): queries 11 out of range: valid are 0 to 10"),
            (
                {"queries": [3], "statistics": Statistics(rows=(4,))},
                r"layer 0 \(0\): rows \[4\] are not among the measured",
            ),
            ({"statistics": Statistics(columns=(11,))}, r"layer 0 \(0\): columns 11 out of range"),
        ],
    )
    def test_what_the_model_does_not_have(self, x, options, message):
        model = stack(3)
        with pytest.raises(ValueError, match=message), observe(model, **options):
            model(x)
        assert nothing_patched()

    def test_one_layer_only(self, x):
        with (
            pytest.raises(ValueError, match="layers 1 out of range: this model has one attention layer, 0"),
            observe(model := stack(1), layers=[1]),
        ):
            model(x)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"layers": [-1]}, ValueError, "layers -1 is negative: layers count from 0"),
            ({"layers": [1, 1]}, ValueError, r"layers \[1, 1\] names one twice"),
            ({"heads": [-2]}, ValueError, "heads -2 out of range: heads count from 0"),
            ({"heads": [2, 2]}, ValueError, r"heads \[2, 2\] names one twice"),
            ({"heads": 3}, TypeError, r"heads=3 is no list of numbers: say heads=\[3\]"),
            ({"queries": [1.5]}, TypeError, "queries contains 1.5, which is no whole number"),
            ({"queries": slice(3)}, TypeError, r"queries=slice\(None, 3, None\) is no list .* queries=range\(3\)"),
            ({"queries": True}, TypeError, "queries=True is no list of numbers"),
            ({"layers": 1.5}, TypeError, r"layers=1\.5 is neither a layer's number nor a pattern of module paths"),
            ({"layers": True}, TypeError, "layers=True is neither a layer's number nor a pattern"),
            ({"layers": [0, 1.5]}, TypeError, r"layers=1\.5 is neither"),
            ({"layers": slice(3)}, TypeError, "layers=slice.* is neither"),
            (
                {"layers": {0: [1]}},
                TypeError,
                r"layers=\{0: \[1\]\} is no list of layers: heads=\{layer: heads\} chooses",
            ),
            ({"layers": []}, ValueError, r"layers=\[\] chooses nothing: name some, or leave layers out"),
            ({"heads": {}}, ValueError, r"heads=\{\} chooses nothing: name some layers, or leave heads out"),
            ({"heads": {True: [1]}}, TypeError, "layers=True is neither"),
            ({"heads": {0: 1}}, TypeError, r"heads=1 is no list of numbers: say heads=\[1\]"),
            (
                {"layers": [1], "heads": {0: [1]}},
                ValueError,
                "heads of layer 0 were chosen for nothing: layers= leaves",
            ),
            ({"layers": 1, "heads": {1: [0], 2: [1]}}, ValueError, "heads of layer 2 were chosen for nothing"),
            ({"statistics": {"top": 8}}, TypeError, r"statistics is a dict, expected .*Statistics\(\*\*statistics\)"),
            ({"statistics": None}, TypeError, "statistics is None, expected a multihead.Statistics"),
            ({"unsupported": "ignore"}, ValueError, "unsupported='ignore' is neither"),
        ],
    )
    def test_what_makes_no_sense_is_refused_at_once(self, as_users_run, options, error, message):
        with pytest.raises(error, match=message):
            observe(stack(1), **options)

    def test_no_module(self, as_users_run):
        with pytest.raises(TypeError, match=r"observe takes a torch.nn.Module, got a function"):
            observe(lambda x: x)

    def test_numbers_from_numpy_and_torch(self, as_users_run, x):
        import numpy

        seen = observed(
            stack(2), x, options={"layers": [numpy.int64(1)], "queries": torch.tensor([3, 1]), "heads": range(2)}
        )
        assert (seen.layers[0].index, seen.layers[0].queries, seen.layers[0].heads) == (1, (1, 3), (0, 1))
        for one in (numpy.int64(1), numpy.array(1), torch.tensor(1)):
            assert observed(stack(2), x, options={"layers": one}).layers[0].index == 1

    @pytest.mark.parametrize(
        ("options", "key"),
        [
            ({"layers": ["1"], "heads": {0: [1]}}, "0"),
            ({"layers": [1], "heads": {"0": [1]}}, "'0'"),
            ({"layers": [0], "heads": {0: [1], "1": [2]}}, "'1'"),
            ({"heads": {"*": [1], 0: [2]}}, "0"),
        ],
    )
    def test_heads_that_only_the_run_shows_to_be_chosen_for_nothing(self, x, options, key):
        model = stack(2)
        with (
            pytest.raises(ValueError, match=f"heads of layer {key} were chosen for nothing"),
            observe(model, **options),
        ):
            model(x)
        assert nothing_patched()

    def test_heads_of_some_layers_and_of_the_others(self, x):
        seen = observed(stack(3), x, options={"layers": [0, 2], "heads": {0: [1]}})
        assert [(layer.index, layer.heads) for layer in seen.layers] == [
            (0, (1,)),
            (2, tuple(range(len(seen.layers[1].heads)))),
        ]
        seen = observed(stack(3), x, options={"heads": {1: [1], "*": [0]}})
        assert [layer.heads for layer in seen.layers] == [(0,), (1,), (0,)]


class TestRuns:
    def test_several_forwards_are_several_runs(self, x):
        model = stack(2)
        with observe(model) as seen:
            for length in (3, 5, 7):
                model(x[:, :length])
        assert [[layer.sizes.keys for layer in run] for run in seen.runs] == [[3, 3], [5, 5], [7, 7]]
        assert [layer.sizes.keys for layer in seen.layers] == [7, 7]
        assert len(seen.check().layers) == 6
        assert [len(seen.recording(run=run).texts["text"][0]) for run in (0, 1, 2, -1)] == [3, 5, 7, 7]
        with pytest.raises(ObservationError, match="run 3 out of range: there were 3 runs"):
            seen.recording(run=3)
        assert repr(seen) == "Seen(Sequential: 3 runs, 2 layers in the last)"

    def test_a_module_that_is_used_twice_is_two_layers(self, x):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.block = Block()

            def forward(self, x):
                return self.block(self.block(x))

        seen = observed(Twice().eval(), x)
        assert [(layer.index, layer.name) for layer in seen.layers] == [(0, "block"), (1, "block")]
        assert observed(Twice().eval(), x, options={"layers": [1]}).layers[0].index == 1

    def test_parts_called_on_their_own_keep_their_numbers(self, x):
        model = stack(3)
        with torch.no_grad(), observe(model) as seen:
            y = x
            for block in model:
                y = block(y)
        assert torch.equal(y, model(x))
        assert [run[0].index for run in seen.runs] == [0, 1, 2]
        with pytest.raises(ValueError, match="layers 3 out of range"), observe(model, layers=[0, 3]):
            model[0](x)

    def test_a_failed_run_is_not_kept(self, x):
        model = stack(2)
        with observe(model) as seen:
            model(x)
            with pytest.raises(RuntimeError, match="shape"):
                model(x[..., :3])
            assert len(seen.runs) == 1
            model(x)
        assert len(seen.runs) == 2
        assert nothing_patched()

    def test_gradient_checkpointing_is_seen_once(self, x):
        class Checkpointed(nn.Module):
            def __init__(self, reentrant):
                super().__init__()
                self.block, self.reentrant = Block(), reentrant

            def forward(self, x):
                return checkpoint(self.block, x, use_reentrant=self.reentrant)

        for reentrant in (False, True):
            model = Checkpointed(reentrant)
            with observe(model) as seen:
                model(x.requires_grad_()).sum().backward()
            assert len(seen.runs) == 1
            assert len(seen.layers) == 1
            assert seen.check().passed

    def test_nothing_that_is_seen_hangs_on_the_graph_or_the_model(self, x):
        model = stack(2)
        with observe(model, statistics=Statistics.every()) as seen:
            model(x)
        layer = seen.layers[0]
        tensors = [layer.q, layer.k, *layer.statistics.named().values()]
        assert not any(tensor.requires_grad for tensor in tensors)
        reference = weakref.ref(model)
        del model
        gc.collect()
        assert reference() is None
        assert seen.check().passed
        assert len(seen.recording().layers) == 2


class TestNothingSeen:
    def test_a_model_without_attention(self):
        model = nn.Sequential(nn.Linear(3, 3))
        with observe(model) as seen:
            model(torch.zeros(2, 3))
        with pytest.raises(ObservationError, match="nothing was seen of Sequential: it ran, but called neither"):
            seen.check()

    def test_a_model_that_is_one_module_of_torch(self):
        model, x = nn.Linear(3, 3), torch.zeros(2, 3)
        state = state_of(model)
        with observe(model) as seen:
            model(x)
        with pytest.raises(ObservationError, match="nothing was seen of Linear: it ran, but called neither"):
            seen.check()
        assert same_state(state, state_of(model))
        with observe(model) as seen:
            pass
        with pytest.raises(ObservationError, match="it did not run to its end"):
            seen.check()

    def test_attention_that_was_left_out(self, x):
        model = stack(2)
        with observe(model, layers=[1]) as seen:
            model[0](x)
            with pytest.raises(
                ObservationError, match="attention appeared in what ran, but was left out: layers= does"
            ):
                seen.check()
            model(x)
        assert [layer.index for layer in seen.layers] == [1]

    def test_a_model_that_did_not_run(self):
        with observe(stack(1)) as seen:
            pass
        for question in (seen.check, seen.recording, lambda: seen.layers):
            with pytest.raises(ObservationError, match="it did not run to its end inside the with block"):
                question()
        assert seen.runs == ()

    def test_a_model_that_ran_in_another_thread(self, x):
        model = stack(1)
        with observe(model) as seen:
            in_thread(lambda: model(x))
        with pytest.raises(ObservationError, match=r"it ran in another thread. Observe it in the thread that runs it"):
            seen.check()

    def test_a_layer_named_that_never_appeared(self):
        model = nn.Sequential(nn.Linear(3, 3))
        with (
            pytest.raises(ValueError, match="layers 0 out of range: this model has no attention layer"),
            observe(model, layers=[0]),
        ):
            model(torch.zeros(2, 3))


class TestRecording:
    def test_tokens_positions_and_provenance(self, x):
        seen = observed(stack(2), x, options={"layers": [1], "heads": {1: [2, 0]}, "queries": [3]})
        assert seen.recording().texts == {"text": [[str(i) for i in range(11)]] * 2}
        tokens = [[f"{row}{i}" for i in range(11)] for row in "ab"]
        recording = seen.recording(tokens)
        assert recording.texts == {"text": tokens}
        about = recording.provenance
        assert (about["model"], about["dtype"], about["device"]) == ("Sequential", "float32", "cpu")
        assert (about["layers"], about["heads"], about["queries"]) == ("[1]", "{1: [2, 0]}", "[3]")
        assert {"torch", "multihead", "python", "date"} <= about.keys()
        assert about["date"].endswith("+00:00")
        assert all(isinstance(value, str) for value in about.values())

    @pytest.mark.parametrize(
        ("tokens", "source", "error", "message"),
        [
            (["a"] * 11, None, ObservationError, r"tokens has 1 sequences, but layer 0 \(0\) saw a batch of 2"),
            (
                [["a"] * 11, ["a"] * 7],
                None,
                ObservationError,
                r"tokens has 7 tokens in sequence 1, but layer 0 \(0\) has 11 ",
            ),
            ("one text", None, TypeError, "tokens is one string: give a list of tokens"),
            ([[1, 2]], None, TypeError, "tokens holds 1, a int: give a list of strings"),
            ([["a"] * 11] * 2, [["a"] * 5] * 2, ObservationError, "source was given, but no layer"),
        ],
    )
    def test_tokens_that_do_not_fit(self, as_users_run, x, tokens, source, error, message):
        seen = observed(stack(1), x)
        with pytest.raises(error, match=message):
            seen.recording(tokens, source=source)

    def test_one_sequence(self, x):
        seen = observed(stack(1), x[:1])
        assert seen.recording(list("abcdefghijk")).texts == {"text": [list("abcdefghijk")]}

    def test_layers_of_several_sizes_have_texts_of_their_own(self):
        class Pyramid(nn.Module):
            def __init__(self):
                super().__init__()
                self.fine, self.coarse = Block(), Block()

            def forward(self, x):
                return self.coarse(self.fine(x)[:, ::2].reshape(1, -1, 14))

        seen = observed(Pyramid().eval(), torch.randn(2, 7, 14))
        recording = seen.recording()
        shapes = {name: (len(rows), len(rows[0])) for name, rows in recording.texts.items()}
        for layer in recording.layers:
            assert shapes[layer.key_text] == (layer.sizes.batch, layer.sizes.keys)
            assert layer.query_text == layer.key_text

    def test_cross_attention_by_lengths(self):
        q, k = torch.randn(2, 3, 7, 5), torch.randn(2, 3, 5, 5)
        seen = observed(Caller(), q, k, k)
        recording = seen.recording([["t"] * 7] * 2, source=[["s"] * 5] * 2)
        assert (recording.layers[0].query_text, recording.layers[0].key_text) == ("target", "source")

    def test_saved_and_opened_again(self, x, tmp_path):
        recording = observed(stack(2), x, options={"statistics": Statistics.every()}).recording()
        recording.save(tmp_path / "seen.safetensors")
        again = load(tmp_path / "seen.safetensors")
        assert [layer.name for layer in again.layers] == ["0", "1"]


def test_modes_and_grad_are_as_they_were(x):
    model = stack(1)
    with torch.inference_mode(), observe(model) as seen:
        assert torch.is_inference_mode_enabled()
        model(x)
        assert torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()
    assert seen.check().passed
    with observe(model):
        assert model(x).requires_grad
        assert torch.is_grad_enabled()


def test_the_door_is_small():
    from multihead import lens

    names = {"CheckReport", "LayerCheck", "Seen", "SkippedAttentionWarning", "observe", "register_transformers"}
    assert set(lens.__all__) >= names
