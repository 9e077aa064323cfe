"""A profile against numpy, and against single texts without padding; what is summed up, and what is given to it."""

import gc
import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import multihead as mh
from multihead import Statistics
from multihead.errors import ObservationError, UnsupportedAttentionError
from multihead.lens import Profile, SkippedAttentionWarning, Summary, observe, profile
from multihead.lens.profile import STATISTICS
from multihead.lens.summaries import FARTHEST, KINDS, OFFSET_EDGES, by_distance
from tests.lens.hosts import bart, bert, gpt2, ids, llama, nothing_patched, padded, same_state, stack, state_of, t5

EVERY = tuple(KINDS)


def close(ours, theirs, tolerance=1e-11):
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=tolerance, atol=tolerance)


def same_profiles(one: Profile, other: Profile, tolerance=1e-11) -> None:
    """Two profiles say the same: counts exactly, the rest to a tolerance."""
    assert (one.texts, one.statistics, len(one.layers)) == (other.texts, other.statistics, len(other.layers))
    for a, b in zip(one.layers, other.layers, strict=True):
        assert (a.index, a.name, a.host, a.heads) == (b.index, b.name, b.host, b.heads)
        assert torch.equal(a.queries, b.queries)
        close(a.offsets, b.offsets, tolerance)
        for name in one.statistics:
            first, second = a.statistics[name].tensors(), b.statistics[name].tensors()
            for part, tensor in first.items():
                if part == "histogram" and tolerance:
                    # a value on an edge may fall to either side
                    assert int((tensor - second[part]).abs().sum()) <= 2, (a, name)
                elif tensor.dtype == torch.int64:
                    assert torch.equal(tensor, second[part]), (a, name, part)
                else:
                    close(tensor, second[part], tolerance)


def entropies(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(-1)


def by_numpy(weights: list[np.ndarray], *, cross: bool = False) -> dict[str, np.ndarray]:
    """All values of each statistic, (heads, values), of the weights of single texts, (heads, queries, keys)."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in STATISTICS}
    for p in weights:
        _, queries, keys = p.shape
        total = p.sum((1, 2))
        received = p.sum(1) / total[:, None]
        away = np.abs(np.arange(queries)[:, None] + keys - queries - np.arange(keys))
        found["entropy"].append(entropies(p))
        found["max_weight"].append(p.max(-1))
        found["first"].append(p[..., 0])
        found["received_max"].append(received.max(-1)[:, None])
        found["received_entropy"].append(entropies(received)[:, None])
        if not cross:
            found["distance"].append(((p * away).sum((1, 2)) / total)[:, None])
    return {name: np.concatenate(values, 1) for name, values in found.items() if values}


def check_layer(layer, weights: list[np.ndarray], *, cross: bool = False) -> None:
    wanted = by_numpy(weights, cross=cross)
    heads = weights[0].shape[0]
    for name, summary in layer.statistics.items():
        if name not in wanted:
            assert summary.count.tolist() == [0] * heads
            assert summary.variance.isnan().all()
            continue
        x = wanted[name]
        assert summary.count.tolist() == [x.shape[1]] * heads
        close(summary.mean, x.mean(1))
        close(summary.variance, x.var(1))
        close(summary.minimum, x.min(1))
        close(summary.maximum, x.max(1))
        assert summary.nonfinite.tolist() == [0] * heads
        edges = np.asarray(KINDS[name].edges)
        # 1 + 1e-16 is still a share
        histogram = [np.histogram(np.clip(row, edges[0], edges[-1]), edges)[0] for row in x]
        assert np.abs(np.asarray(summary.histogram) - histogram).sum() <= 2
        assert summary.histogram.sum(1).tolist() == [x.shape[1]] * heads


def weights_of(model, count: int, **inputs) -> list[np.ndarray]:
    """The weights of each layer over one text, (heads, queries, keys), by the formula that users see."""
    with observe(model) as seen, torch.no_grad():
        model(**inputs)
    found = []
    for layer in seen.runs[count]:
        queries = range(layer.sizes.queries)
        found.append(seen.recording(run=count).rows(layer.index, list(queries)).numpy())
    return found


class TestAgainstNumpy:
    """In float64 throughout, so that only the formulas differ."""

    @pytest.mark.parametrize("left", [False, True])
    def test_llama(self, left):
        model = llama().double()
        lengths = (7, 11, 3)
        tokens = ids(3, 11)
        mask = padded(*lengths, left=left)
        # its rotation is computed in float32, so the positions have to be the same
        places = (mask.cumsum(1) - 1).clamp_min(0)
        first = {"input_ids": tokens, "attention_mask": mask, "position_ids": places}
        made = profile(model, [first, {"input_ids": ids(2, 5, seed=9)}])
        texts = [tokens[item][mask[item].bool()][None] for item in range(3)]
        texts += [row[None] for row in ids(2, 5, seed=9)]
        weights = [weights_of(model, 0, input_ids=text) for text in texts]
        assert (made.texts, made.batches) == (5, 2)
        for number, layer in enumerate(made.layers):
            assert layer.queries.tolist() == [7 + 11 + 3 + 5 + 5] * 6
            check_layer(layer, [layers[number] for layers in weights])

    def test_bert_and_the_mass_by_distance(self):
        model = bert().double()
        lengths = (5, 13, 2)
        tokens, mask = ids(3, 13), padded(5, 13, 2)
        made = profile(model, [{"input_ids": tokens, "attention_mask": mask}])
        weights = [weights_of(model, 0, input_ids=tokens[i : i + 1, :n]) for i, n in enumerate(lengths)]
        for number, layer in enumerate(made.layers):
            check_layer(layer, [layers[number] for layers in weights])
            mass = np.zeros((3, len(OFFSET_EDGES) - 1))
            for layers in weights:
                p = layers[number]
                away = np.arange(p.shape[1])[:, None] - np.arange(p.shape[2])
                for head in range(3):
                    mass[head] += np.histogram(away, OFFSET_EDGES, weights=p[head])[0]
            close(layer.offsets, mass)
            close(layer.offsets.sum(1), layer.queries)
            assert layer.offset_edges == OFFSET_EDGES

    def test_the_numbers_are_those_of_each_padded_batch(self):
        """In float32 the values are the kernel's own, to the last bit."""
        model = llama()
        batch = {"input_ids": ids(3, 11), "attention_mask": padded(11, 7, 11)}
        asked = Statistics(sink=True)
        with observe(model, statistics=asked) as seen, torch.no_grad():
            model(**batch)
        made = profile(model, [batch], statistics=["lse", "entropy", "max_weight"])
        real = batch["attention_mask"].bool()
        for layer, found in zip(seen.layers, made.layers, strict=True):
            own = layer.statistics
            peak = (own.max_score.double() - own.lse.double()).exp()
            for name, values in {"lse": own.lse, "entropy": own.entropy, "max_weight": peak}.items():
                x = values.double().transpose(0, 1)[:, real]
                summary = found.statistics[name]
                close(summary.mean, x.mean(1), 1e-6)
                close(summary.minimum, x.amin(1), 1e-6)
                close(summary.m2 / summary.count, x.var(1, correction=0), 1e-5)


@pytest.mark.parametrize("make", [t5, bart])
def test_encoder_decoder(make):
    model = make().double()
    source, target = ids(3, 11), ids(3, 7, seed=8)
    long, short = (11, 5, 8), (3, 7, 5)
    batch = {
        "input_ids": source,
        "attention_mask": padded(*long),
        "decoder_input_ids": target,
        "decoder_attention_mask": padded(*short),
    }
    apart = [
        {"input_ids": source[i : i + 1, : long[i]], "decoder_input_ids": target[i : i + 1, : short[i]]}
        for i in range(3)
    ]
    made, single = profile(model, [batch], statistics=EVERY), profile(model, apart, statistics=EVERY)
    assert made.texts == single.texts == 3
    same_profiles(made, single)
    totals = {tuple(layer.queries.tolist()) for layer in made.layers}
    assert {count for counts in totals for count in counts} == {24, 15}
    crossing = [layer for layer in made.layers if "encoder_attn" in layer.name or "EncDec" in layer.name]
    assert len(crossing) == 2
    for layer in crossing:
        assert not layer.statistics["distance"].count.any()
        assert not layer.offsets.any()
        assert (layer.statistics["received_max"].count == 3).all()


def test_the_decoders_padding_as_labels_say_it():
    model = t5().double()
    labels = ids(2, 7)
    labels[1, 4:] = -100
    made = profile(model, [{"input_ids": ids(2, 7), "attention_mask": padded(7, 5), "labels": labels}])
    assert {layer.name.split(".")[0]: layer.queries[0].item() for layer in made.layers} == {
        "encoder": 12,
        "decoder": 11,
    }


class TestPadding:
    """Of hosts that say it in their own words, or only in the mask that is observed."""

    def test_torchs_encoder(self):
        layer = nn.TransformerEncoderLayer(12, 2, 17, batch_first=True, dtype=torch.float64)
        for nested in (False, True):
            model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
            x, real = torch.randn(3, 7, 12, dtype=torch.float64), padded(7, 2, 5).bool()
            made = profile(model, [{"src": x, "src_key_padding_mask": ~real}])
            single = profile(model, [x[i : i + 1, : int(real[i].sum())] for i in range(3)])
            same_profiles(made, single)

    def test_sequences_that_stand_in_columns(self):
        """torch's modules have the batch on the second axis unless they are told otherwise."""
        model = nn.TransformerEncoderLayer(12, 2, 17, dtype=torch.float64)
        x, real = torch.randn(7, 3, 12, dtype=torch.float64), padded(7, 2, 5).bool()
        made = profile(model, [{"src": x, "src_key_padding_mask": ~real}])
        assert (made.texts, made.layers[0].queries.tolist()) == (3, [14, 14])
        same_profiles(made, profile(model, [x[: int(real[i].sum()), i : i + 1] for i in range(3)]))

    def test_torchs_transformer(self):
        model = nn.Transformer(12, 2, 1, 1, 17, batch_first=True, dtype=torch.float64)
        src, tgt = torch.randn(2, 7, 12, dtype=torch.float64), torch.randn(2, 5, 12, dtype=torch.float64)
        batch = {"src": src, "tgt": tgt, "tgt_is_causal": True}
        batch |= {"tgt_mask": nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)}
        padding = {"src_key_padding_mask": ~padded(7, 3).bool(), "memory_key_padding_mask": ~padded(7, 3).bool()}
        padding |= {"tgt_key_padding_mask": torch.where(padded(2, 5).bool(), 0.0, -torch.inf).double()}
        made = profile(model, [batch | padding])
        counts = {layer.name: layer.queries[0].item() for layer in made.layers}
        assert list(counts.values()) == [10, 7, 7]

    def test_ours(self):
        from multihead.models import Config, Encoder, EncoderDecoder

        sizes = {"vocab_size": 53, "embed_dim": 12, "num_heads": 3}
        model = Encoder(Config(**sizes, encoder_layers=2)).double()
        tokens, real = ids(3, 7), padded(7, 2, 5).bool()
        made = profile(model, [{"tokens": tokens, "valid": real}])
        same_profiles(made, profile(model, [tokens[i : i + 1, : int(real[i].sum())] for i in range(3)]))
        both = EncoderDecoder(Config(**sizes, encoder_layers=1, decoder_layers=1)).double()
        batch = {"source": ids(2, 7), "target": ids(2, 7), "source_valid": real[:2], "target_valid": real[[2, 0]]}
        counts = [layer.queries[0].item() for layer in profile(both, [batch]).layers]
        assert counts == [9, 12, 12]

    def test_as_the_observed_mask_says_it(self):
        class Own(nn.Module):
            def forward(self, q, hidden):
                return nn.functional.scaled_dot_product_attention(q, q, q, ~hidden[:, None, None])

        q, real = torch.randn(2, 3, 7, 5, dtype=torch.float64), padded(7, 4).bool()
        made = profile(Own(), [(q, ~real)])
        assert made.layers[0].queries.tolist() == [11] * 3
        same_profiles(made, profile(Own(), [(q[:1], ~real[:1]), (q[1:, :, :4], ~real[1:, :4])]))

    def test_queries_that_see_nothing_do_not_count(self):
        class Own(nn.Module):
            def forward(self, q, allowed):
                return nn.functional.scaled_dot_product_attention(q, q, q, allowed)

        allowed = torch.ones(1, 3, 7, 7, dtype=torch.bool).tril()
        allowed[:, 1, 4:] = False
        made = profile(Own(), [(torch.randn(2, 3, 7, 5), allowed)])
        layer = made.layers[0]
        assert layer.queries.tolist() == [14, 8, 14]
        assert layer.statistics["entropy"].count.tolist() == [14, 8, 14]
        assert layer.statistics["distance"].count.tolist() == [2, 2, 2]
        nothing = profile(Own(), [(torch.randn(2, 3, 7, 5), torch.zeros(7, 7, dtype=torch.bool))])
        assert nothing.layers[0].queries.tolist() == [0, 0, 0]
        assert not nothing.layers[0].statistics["received_max"].count.any()


def test_learned_sinks_and_chosen_heads():
    attn = mh.MultiHeadAttention(12, 6, num_kv_heads=2, sinks=True).double()
    nn.init.normal_(attn.sinks if isinstance(getattr(attn, "sinks", None), Tensor) else next(attn.parameters()))
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    every = profile(attn, [x])
    with observe(attn, statistics=Statistics(sink=True)) as seen:
        attn(x)
    sink = seen.layers[0].statistics.sink.transpose(0, 1).flatten(1)
    close(every.layers[0].statistics["sink"].mean, sink.mean(1))
    close(every.layers[0].statistics["sink"].maximum, sink.amax(1))
    some = profile(attn, [x], heads=[4, 1])
    assert some.layers[0].heads == (4, 1)
    for name, summary in some.layers[0].statistics.items():
        close(summary.mean, every.layers[0].statistics[name].mean[[4, 1]])
    chosen = profile(stack(3), [torch.randn(1, 5, 14)], layers=[1], statistics=["lse"])
    assert [(layer.index, list(layer.statistics)) for layer in chosen.layers] == [(1, ["lse"])]


@given(
    st.lists(st.lists(st.floats(-1e6, 1e6), min_size=0, max_size=7), min_size=1, max_size=5),
    st.sampled_from(sorted(KINDS)),
)
def test_summaries_in_parts_are_the_summary_of_the_whole(parts, name):
    kind = KINDS[name]
    tensors = [torch.tensor(part, dtype=torch.float64).view(1, 1, -1).repeat(1, 2, 1) for part in parts]
    whole = torch.cat(tensors, 2)
    merged = Summary.empty(2, kind)
    for tensor in tensors:
        merged = merged.merged(Summary.of(tensor, torch.ones_like(tensor, dtype=torch.bool), kind))
    once = Summary.of(whole, torch.ones_like(whole, dtype=torch.bool), kind)
    for part in ("count", "minimum", "maximum", "histogram", "nonfinite"):
        assert torch.equal(getattr(merged, part), getattr(once, part))
    scale = float(whole.abs().max()) if whole.numel() else 0.0
    np.testing.assert_allclose(merged.mean, once.mean, rtol=1e-12, atol=1e-14 * scale)
    np.testing.assert_allclose(merged.m2, once.m2, rtol=1e-11, atol=1e-14 * scale**2)
    if whole.numel():
        values = np.asarray(whole[0, 0])
        np.testing.assert_allclose(once.variance[0], values.var(), rtol=1e-12, atol=1e-14 * scale**2)
        inside = np.clip(values, kind.edges[0], kind.edges[-1])
        assert once.histogram[0].tolist() == np.histogram(inside, np.asarray(kind.edges))[0].tolist()


def test_variance_far_from_zero():
    """Where the textbook formula, mean of squares less square of the mean, gives nothing but rounding."""
    x = 1e9 + torch.arange(1000, dtype=torch.float64).view(1, 1, -1) / 1000
    parts = [Summary.of(part, torch.ones_like(part, dtype=torch.bool), KINDS["lse"]) for part in x.split(7, 2)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merged(part)
    np.testing.assert_allclose(merged.variance[0], np.asarray(x).var(), rtol=1e-4)
    squares = np.float64((np.asarray(x) ** 2).mean() - np.asarray(x).mean() ** 2)
    assert abs(squares - np.asarray(x).var()) > 1.0


def test_values_that_are_no_numbers_are_counted_apart():
    values = torch.tensor([[[0.5, torch.nan, torch.inf, 0.25, -torch.inf]]])
    counted = torch.tensor([[[True, True, True, True, False]]])
    summary = Summary.of(values, counted, KINDS["entropy"])
    assert (summary.count.item(), summary.nonfinite.item(), summary.mean.item()) == (2, 2, 0.375)
    assert summary.histogram.sum() == 2
    assert "Summary of 2 values a head: means 0.375" in repr(summary)


def test_mass_by_distance_at_the_edges():
    far = 1 << FARTHEST
    found = by_distance(torch.ones(2, 1, 9), -4)[0]
    places = {edge: value for edge, value in zip(OFFSET_EDGES, found.tolist(), strict=False) if value}
    assert places == {-7: 2.0, -3: 4.0, -1: 2.0, 0: 2.0, 1: 2.0, 2: 4.0, 4: 2.0}
    assert by_distance(torch.ones(1, 1, 2), far)[0, -1] == 2
    assert by_distance(torch.ones(1, 1, 2), -2 * far)[0, 0] == 2


class Nested(nn.Module):
    """What cannot be measured."""

    def forward(self, q):
        q = torch.nested.nested_tensor(list(q))
        return nn.functional.scaled_dot_product_attention(q, q, q)


class TestBatches:
    def test_all_kinds(self):
        model = stack(1)
        x = torch.randn(6, 5, 14)
        wanted = profile(model, [x[:4], x[4:]])
        for data in (
            [{"input": x[:4]}, {"input": x[4:]}],
            [(x[:4],), [x[4:]]],
            DataLoader(TensorDataset(x), batch_size=4),
            iter([x[:4], x[4:]]),
        ):
            same_profiles(profile(model, data), wanted, 0)

    def test_what_transformers_tokenizers_give(self):
        from transformers import BatchEncoding

        batch = {"input_ids": ids(2, 7), "attention_mask": padded(7, 5)}
        same_profiles(profile(bert(), [BatchEncoding(batch)]), profile(bert(), [batch]), 0)

    @pytest.mark.parametrize(
        ("batch", "message"),
        [
            ("a text", "batch 0 is a str: give a dict of keyword arguments, a tensor, or a tuple of arguments"),
            (7, "batch 0 is an int: give a dict"),
            ((), "batch 0 is a tuple: give a dict"),
            (["a text"], "batch 0: argument 0 is a str, which is no tensor: make a tensor of it, or leave it out"),
            ({"input": np.zeros(3)}, "batch 0: 'input' is a ndarray, which is no tensor"),
            ({"input": [["a"]]}, "batch 0: 'input' holds something that holds something that is a str"),
            ((torch.zeros(2, 2).to_sparse(),), "batch 0: argument 0 is no dense tensor: pad it, and pass a mask of"),
            (torch.nested.nested_tensor([torch.zeros(2)]), "batch 0 is no dense tensor: pad it"),
            ({3: torch.zeros(1)}, "batch 0 has the key 3: the keys of a batch are names of arguments"),
            (
                {"input": torch.zeros(1), "label": 1},
                "Sequential takes no argument 'label': leave it out of the batches",
            ),
        ],
    )
    def test_what_cannot_be_passed(self, batch, message):
        with pytest.raises(TypeError, match=message):
            profile(stack(1), [batch])
        assert nothing_patched()

    @pytest.mark.usefixtures("as_users_run")
    @pytest.mark.parametrize("data", ["texts", {"input_ids": torch.zeros(1)}, torch.zeros(2, 3), 7])
    def test_what_gives_no_batches(self, data):
        with pytest.raises(TypeError, match="expected batches one after the other: a DataLoader, or a list"):
            profile(stack(1), data)

    @pytest.mark.usefixtures("as_users_run")
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            (
                {"statistics": ["beauty"]},
                ValueError,
                "statistics 'beauty' cannot be profiled: choose from entropy, max",
            ),
            ({"statistics": []}, ValueError, r"statistics=\[\] asks for nothing: choose from entropy"),
            ({"statistics": "entropy"}, TypeError, "statistics='entropy' is no list of names: choose from entropy"),
            ({"statistics": Statistics()}, TypeError, "is no list of names"),
            ({"layers": [5]}, ValueError, "layers 5 out of range"),
            ({"heads": [7]}, ValueError, "heads 7 out of range"),
            ({"unsupported": "maybe"}, ValueError, 'unsupported=\'maybe\' is neither "raise" nor "skip"'),
        ],
    )
    def test_arguments(self, options, error, message):
        with pytest.raises(error, match=message):
            profile(stack(1), [torch.zeros(1, 5, 14)], **options)
        assert nothing_patched()

    @pytest.mark.usefixtures("as_users_run")
    def test_models(self):
        with pytest.raises(TypeError, match=r"profile takes a torch.nn.Module, got a str"):
            profile("bert", [])
        with pytest.raises(ObservationError, match="nothing was seen of Linear in batch 0: it computed no attention"):
            profile(nn.Linear(3, 3), [torch.zeros(1, 3)])
        with pytest.raises(ObservationError, match="on the meta device"):
            profile(nn.Linear(3, 3, device="meta"), [])
        with pytest.raises(
            UnsupportedAttentionError, match=r"layer 0 \(the model itself\) cannot be observed: its query"
        ):
            profile(Nested(), [torch.zeros(2, 3, 5, 7)])
        with pytest.warns(SkippedAttentionWarning, match="It is left out"):
            made = profile(Nested(), [torch.zeros(2, 3, 5, 7)], unsupported="skip")
        assert (made.batches, made.layers) == (1, ())

    def test_no_batches(self):
        made = profile(stack(1), [])
        assert (made.texts, made.batches, made.layers) == (0, 0, ())


def test_the_model_is_left_as_it_was():
    model = gpt2(attn_pdrop=0.5, resid_pdrop=0.5).train()
    model.transformer.h[1].eval()
    state = state_of(model)
    data = [{"input_ids": ids(2, 7)}]
    same_profiles(profile(model, data), profile(model, data), 0)
    assert same_state(state, state_of(model))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert nothing_patched()


def test_two_hundred_batches_leave_nothing_behind():
    model = stack(1)
    state = state_of(model)
    counts = []

    def data():
        for number in range(200):
            if number in (20, 190):
                gc.collect()
                counts.append(sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()))
            yield torch.randn(3, 5 + number % 7, 14)

    made = profile(model, data())
    assert made.batches == 200
    assert counts[0] == counts[1]
    assert same_state(state, state_of(model))
    assert nothing_patched()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    first = sum(
        tensor.numel()
        for layer in profile(model, [torch.randn(1, 5, 14)]).layers
        for tensor in layer.tensors().values()
    )
    assert first == sum(tensor.numel() for layer in made.layers for tensor in layer.tensors().values())


def test_the_bar_is_for_terminals(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    model, data = stack(1), [torch.randn(1, 5, 14)] * 3
    screen, pipe = Terminal(), io.StringIO()
    monkeypatch.setattr("sys.stderr", pipe)
    profile(model, data)
    assert not pipe.getvalue()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    profile(model, data)
    assert "batches" in screen.getvalue()
    assert "3/3" in screen.getvalue()
