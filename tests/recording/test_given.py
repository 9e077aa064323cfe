"""Weights that someone already has: kept as they are, asked, saved and opened again; and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from multihead import masks
from multihead.core import reference
from multihead.errors import RecordingError
from multihead.masks import Sizes
from multihead.recording import Layer, Recording, checked, load
from multihead.recording.whole import kept_of
from multihead.recording.words import Tokens
from tests.accuracy import SIZES, check, plain, random_call
from tests.recording.examples import difference, forged, recording_of, same_bits, selected

KEYS = SIZES["keys"]
SOURCE = [f"source{place}" for place in range(KEYS)]
TARGET = [f"target{place}" for place in range(SIZES["queries"])]


def made(dtype=torch.float32, **options) -> torch.Tensor:
    """(2, 6, 11, 11) weights, or of other sizes."""
    return reference(random_call(**{"queries": KEYS} | options)).weights.to(dtype)


def two(tokens: list[str]) -> list[list[str]]:
    return [tokens, [token.upper() for token in tokens]]


def of(weights: torch.Tensor, **options) -> Recording:
    """One layer of two sequences."""
    return Recording.from_weights([weights], two(SOURCE), **options)


class TestWhatIsAsked:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("item", [0, 1])
    def test_rows_columns_and_tiles_are_what_was_given(self, item, dtype):
        weights = made(dtype, queries=7)
        recording = Recording.from_weights([weights], two(TARGET), key_tokens=two(SOURCE))
        own = weights[item]
        assert same_bits(recording.rows(0, [6, 0, 2], item=item), own[:, [6, 0, 2]])
        assert same_bits(recording.rows(0, range(7), heads=[4, 1], item=item), own[[4, 1]])
        assert same_bits(recording.columns(0, [9, 3], item=item), own[..., [9, 3]])
        assert same_bits(recording.tile(0, slice(2, 5), range(3, 11, 2), heads=[5], item=item), own[[5], 2:5, 3:11:2])
        assert same_bits(recording.tile(0, slice(None), slice(None), item=item), own)
        assert recording.rows(0, [], item=item).shape == (6, 0, 11)

    def test_it_is_the_other_sequence_that_is_not_asked(self):
        weights = made()
        assert not torch.equal(of(weights).rows(0, [3], item=0), weights[1][:, [3]])
        assert not torch.equal(of(weights).rows(0, [3], heads=[1], item=0), weights[0][[0]][:, [3]])

    @pytest.mark.parametrize("direction", ["from", "to"])
    def test_the_strongest(self, direction):
        layers = [made(seed=seed) for seed in range(3)]
        recording = Recording.from_weights(layers, two(SOURCE))
        found = recording.top("SOURCE4", direction=direction, count=9, item=1)
        stacked = torch.stack([layer[1] for layer in layers])
        lines = stacked[..., 4, :] if direction == "from" else stacked[..., 4]
        values, order = lines.flatten().sort(descending=True)
        assert [link.weight for link in found] == values[:9].tolist()
        places = [np.unravel_index(place, lines.shape) for place in order[:9].tolist()]
        other = [link.key if direction == "from" else link.query for link in found]
        assert [(link.layer, link.head) for link in found] == [(layer, head) for layer, head, _ in places]
        assert other == [token for _, _, token in places]
        assert {link.query_token if direction == "from" else link.key_token for link in found} == {"SOURCE4"}

    def test_hidden_keys_are_no_links(self):
        recording = of(made(mask=masks.causal()))
        assert {link.key for link in recording.top("source1", count=100)} == {0, 1}

    def test_what_is_asked_is_a_copy(self):
        weights = made()
        recording = of(weights)
        recording.tile(0, slice(None), slice(None)).zero_()
        assert same_bits(recording.layers[0].weights, made())

    @pytest.mark.parametrize("asked", ["rows", "columns"])
    def test_memory_is_the_answer(self, asked):
        recording = Recording.from_weights([torch.full((3, 307, 307), 1 / 307)], [str(place) for place in range(307)])
        with Largest() as largest:
            recording.rows(0, [5, 300]) if asked == "rows" else recording.columns(0, [5, 300])
        assert largest.entries == 3 * 2 * 307

    def test_what_is_not_there(self):
        recording = of(made(), heads=[1, 3, 5, 7, 9, 11], layers=[4])
        with pytest.raises(RecordingError, match=r"head 0 of layer 4 was not recorded: its heads are 1, 3, 5, 7, 9 "):
            recording.rows(4, [0], heads=[0])
        with pytest.raises(RecordingError, match="key 11 of layer 4 was not recorded"):
            recording.columns(4, [11])
        with pytest.raises(RecordingError, match=r"there is no sequence 2"):
            recording.rows(4, [0], item=2)
        with pytest.raises(
            RecordingError, match=r"holds the weights that were given .* rows, columns, tile and top read"
        ):
            kept_of(recording.layers[0])


class Largest(TorchDispatchMode):
    """Remembers how many entries the largest new tensor of floating-point numbers had."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        answer = function(*args, **(kwargs or {}))
        if not any(result.alias_info for result in function._schema.returns):
            tensors = [
                leaf for leaf in tree_leaves(answer) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
            ]
            self.entries = max([self.entries, *(tensor.numel() for tensor in tensors)])
        return answer


class TestWhatIsTaken:
    """One layer each in every form that people have it in."""

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_precisions(self, dtype):
        weights = made(dtype)
        held = of(weights).layers[0].weights
        assert held.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.equal(held, weights.to(held.dtype))

    def test_float32_is_not_copied(self):
        weights = made()
        assert of(weights).layers[0].weights.data_ptr() == weights.data_ptr()

    def test_with_a_gradient(self):
        weights = made().requires_grad_()
        assert not of(weights).layers[0].weights.requires_grad
        assert not of(weights).rows(0, [1]).requires_grad

    @pytest.mark.parametrize("form", ["float16", "float32", "float64", "longdouble", ">f4", ">f2", "F", "flipped"])
    def test_arrays(self, form):
        array = made(torch.float64).numpy()
        if form == "F":
            array = np.asfortranarray(array)
        elif form == "flipped":
            array = array[:, ::-1]
        else:
            array = array.astype(form)
        array.setflags(write=False)
        held = Recording.from_weights([array], two(SOURCE)).layers[0].weights
        assert held.dtype == (torch.float64 if array.dtype.itemsize > 4 else torch.float32)
        np.testing.assert_array_equal(held.numpy(), array)

    def test_one_sequence_without_an_axis_for_it(self):
        weights = made(batch=1)
        for one in (weights, weights[0]):
            recording = Recording.from_weights([one], SOURCE)
            assert recording.layers[0].sizes == Sizes(1, 6, KEYS, KEYS)
            assert same_bits(recording.rows(0, [5]), weights[0][:, [5]])

    def test_some_layers_and_heads(self):
        weights = made()
        recording = Recording.from_weights((None, weights, None, weights[:, :4]), two(SOURCE))
        assert [(layer.index, layer.name, layer.heads) for layer in recording] == [
            (1, "weights[1]", (0, 1, 2, 3, 4, 5)),
            (3, "weights[3]", (0, 1, 2, 3)),
        ]
        assert repr(recording) == ("Recording of an unnamed model: 2 layers × 4 to 6 heads, 2 sequences of 11 tokens")
        named = Recording.from_weights([weights[:, :2], None], two(SOURCE), layers=[9, 4], heads=[5, 2])
        assert [(layer.index, layer.heads, layer.sizes.heads) for layer in named] == [(9, (5, 2), 6)]
        assert same_bits(named.rows(9, [4], heads=[2]), weights[0][[1]][:, [4]])
        assert repr(named) == "Recording of an unnamed model: 1 layer × 2 of 6 heads, 2 sequences of 11 tokens"

    def test_texts(self):
        weights = made(queries=7)
        recording = Recording.from_weights(
            [weights], two(TARGET), key_tokens=two(SOURCE), provenance={"model": "Cross"}
        )
        assert recording.texts == {"target": two(TARGET), "source": two(SOURCE)}
        assert (recording.layers[0].query_text, recording.layers[0].key_text) == ("target", "source")
        assert repr(recording) == (
            "Recording of Cross: 1 layer × 6 heads, "
            "target of 2 sequences of 7 tokens and source of 2 sequences of 11 tokens"
        )
        link = recording.top("target3", count=1)[0]
        assert link.key_token == SOURCE[link.key]
        assert of(made()).texts == {"text": two(SOURCE)}

    def test_one_of_two_sequences(self):
        recording = of(made()).sequence(1)
        assert recording.texts == {"text": [two(SOURCE)[1]]}
        assert same_bits(recording.rows(0, [5, 1]), made()[1][:, [5, 1]])
        assert same_bits(recording.layers[0].statistics.received, of(made()).layers[0].statistics.received[[1]])

    @pytest.mark.parametrize("shape", [(1, 3, 0, 0), (1, 0, 2, 2)])
    def test_nothing(self, shape):
        recording = Recording.from_weights([torch.zeros(shape)], ["token"] * shape[2])
        assert recording.layers[0].weights.shape == shape

    @pytest.mark.parametrize("kind", ["dropped out", "averaged", "pruned", "almost one"])
    def test_rows_need_not_add_up_to_one(self, kind):
        weights = made()
        if kind == "dropped out":
            weights = torch.nn.functional.dropout(weights, 0.1) * 0.9
        elif kind == "averaged":
            weights = weights * 0.7
        elif kind == "pruned":
            weights[:, 2] = 0.0
        else:
            weights = torch.eye(KEYS).expand(2, 6, KEYS, KEYS) * (1 + 9e-4)
        assert same_bits(of(weights).rows(0, [3], item=1), weights[1][:, [3]])


class TestStatistics:
    def call(self):
        # some rows see nothing
        padding = masks.padding(torch.arange(2 * KEYS).view(2, KEYS) % 5 > 0)
        return random_call(queries=KEYS, mask=padding & ~masks.prefix(1) & masks.causal())

    def test_entropy_and_received(self):
        call = self.call()
        recording = of(reference(call).weights.float())
        exact = reference(call).weights
        simple = plain(call).weights
        found = recording.layers[0].statistics
        assert found.named().keys() == {"entropy", "received"}
        check(found.entropy, torch.special.entr(exact).sum(-1), torch.special.entr(simple).sum(-1), "entropy")
        check(found.received, exact.sum(-2), simple.sum(-2), "received")
        assert not found.entropy[:, :, 0].any()
        assert found.entropy[:, :, 9].min() > 0.1
        with pytest.raises(AssertionError, match="error"):
            check(found.received, exact.sum(-1), simple.sum(-1))

    def test_entropy_of_half_precision(self):
        exact = reference(self.call()).weights
        found = of(exact.bfloat16()).layers[0].statistics.entropy
        assert (found - torch.special.entr(exact).sum(-1)).abs().max() < 0.02

    def test_no_entropy_of_rows_that_are_not_whole(self):
        weights = made()
        weights[1, 4, 7] *= 0.98
        assert of(weights).layers[0].statistics.named().keys() == {"received"}
        assert of(made()).layers[0].statistics.named().keys() == {"entropy", "received"}

    def test_entropy_is_not_negative(self):
        assert of(torch.eye(KEYS).expand(2, 6, KEYS, KEYS) * (1 + 9e-4)).layers[0].statistics.entropy.min() == 0


class TestFiles:
    def test_the_same_again(self, tmp_path):
        recording = Recording.from_weights(
            [made(torch.float64), None, made(torch.bfloat16)], two(SOURCE), heads=[7, 1, 2, 3, 4, 5], layers=[8, 3, 5]
        )
        recording.save(tmp_path / "run.safetensors")
        loaded = load(tmp_path / "run.safetensors")
        assert difference(recording, loaded) is None
        assert same_bits(loaded.rows(5, [3], heads=[1], item=1), recording.rows(5, [3], heads=[1], item=1))
        assert difference(recording, replace(loaded, layers=(loaded.layers[1], loaded.layers[0]))) is not None
        loaded.sequence(1).save(tmp_path / "one.safetensors")
        assert difference(recording.sequence(1), load(tmp_path / "one.safetensors")) is None

    def test_opening_reads_no_weights(self, tmp_path):
        of(made()).save(tmp_path / "run.safetensors")
        layer = load(tmp_path / "run.safetensors").layers[0]
        assert "weights" not in vars(layer)
        assert layer.weights is layer.weights
        assert "weights" in vars(layer)

    def test_an_older_reader_refuses_them_by_name(self, tmp_path, monkeypatch):
        of(made()).save(tmp_path / "given.safetensors")
        recording_of(selected(random_call(queries=KEYS))).save(tmp_path / "seen.safetensors")
        schemas = []
        for name in ("given", "seen"):
            with safe_open(tmp_path / f"{name}.safetensors", framework="pt") as file:
                schemas.append(file.metadata()["schema"])
        assert schemas == ["2", "1"]
        monkeypatch.setattr(checked, "SCHEMA", 1)
        with pytest.raises(
            RecordingError, match=r"written by a newer multihead \(schema 2; this one reads 1\): upgrade"
        ):
            load(tmp_path / "given.safetensors")
        assert len(load(tmp_path / "seen.safetensors")) == 1

    @pytest.mark.parametrize("number", [float("nan"), float("inf"), -0.25, 1.25])
    def test_weights_that_are_none(self, tmp_path, number):
        path = tmp_path / "run.safetensors"
        of(made()).save(path)

        def change(parts):
            parts.tensor("layers.0.weights")[40:44] = np.float32(number).tobytes()

        loaded = load(forged(path, change))
        with pytest.raises(
            RecordingError, match=r"damaged recording: weights holds .*, which is no number between 0 and 1"
        ):
            loaded.rows(0, [0])
        broken = of(made())
        broken.layers[0].weights[0, 0, 0, 0] = number
        with pytest.raises(RecordingError, match="cannot be saved: layer 0: weights holds"):
            broken.save(path)

    def test_weights_beside_queries_and_keys(self):
        seen = selected(random_call(queries=KEYS))
        with pytest.raises(ValueError, match="layer 0: weights are kept, or q and k to recompute them from, not both"):
            replace(seen, weights=made())

    def test_another_shape(self):
        with pytest.raises(
            ValueError, match=r"layer 3: weights has shape .* expected the axes batch 2, head 6, query 11"
        ):
            Layer(
                index=3, name="", host="", sizes=Sizes(2, 6, KEYS, KEYS), heads=tuple(range(6)), weights=made(queries=7)
            )


def heads_last(weights: torch.Tensor) -> torch.Tensor:
    return weights.movedim(-3, -1)


NAN = made(batch=1)
NAN[0, 3, 2, 1] = torch.nan

REFUSED: dict[str, tuple[object, str]] = {
    "one map": (made(batch=1)[0, 0], r"weights\[0\] is one map of shape \(11, 11\).* give weights\[0\]\[None\]"),
    "a vector": (torch.ones(3), r"has shape \(3,\), expected \(batch, heads, queries, keys\)"),
    "five axes": (made(batch=1)[None], r"has shape \(1, 1, 6, 11, 11\), expected"),
    "heads last": (heads_last(made(batch=1)), r"has 11 queries and 6 keys .*heads come last; .*movedim\(-1, -3\)"),
    "heads last, no batch": (heads_last(made(batch=1)[0]), r"heads come last; .*weights\[0\].movedim\(-1, -3\)"),
    "as many heads, last": (heads_last(made(batch=1, heads=11, kv_heads=1)), r"another order .*movedim\(-1, -3\)"),
    "heads in the middle": (made(batch=1).swapaxes(1, 2), r"heads stand in the middle; .*swapaxes\(-2, -3\)"),
    "keys before queries": (made(batch=1).swapaxes(-1, -2), r"adds up to 1 over the queries .*swapaxes\(-1, -2\)"),
    "fewer queries": (made(batch=1, queries=7), r"has 7 queries and 11 keys .* there are 11 tokens: .* key_tokens"),
    "other tokens": (made(batch=1, queries=7, keys=7), r"has 7 queries and 7 keys .* one token for each position"),
    "a batch": (made(), r"has a batch of 2 .* but tokens are of one sequence: give one list of tokens for each"),
    "NaN": (NAN, r"weights\[0\] holds NaN: look at the model first"),
    "negative": (made(batch=1) - 0.01, r"weights\[0\] holds -0\.0.*: weights are what softmax gives.*softmax\(-1\)"),
    "infinite": (made(batch=1).index_fill(3, torch.tensor(2), torch.inf), r"holds inf, expected numbers from 0 to 1"),
    "too large": (made(batch=1) * 1.6, r"holds 1\.\d+, expected numbers from 0 to 1: .*model\.eval\(\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_weights_that_are_refused(case):
    weights, words = REFUSED[case]
    with pytest.raises(ValueError, match=words) as caught:
        Recording.from_weights([weights], SOURCE)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=words.replace(r"weights\[0\]", r"weights\[2\]")):
        Recording.from_weights([made(batch=1), None, weights], SOURCE)


def test_keys_before_queries_of_two_texts():
    with pytest.raises(
        ValueError, match=r"has 11 queries and 7 keys .* there are 7 tokens and 11 key_tokens: its keys"
    ):
        Recording.from_weights([made(batch=1, queries=7).swapaxes(-1, -2)], TARGET, key_tokens=SOURCE)
    with pytest.raises(ValueError, match=r"there are 11 tokens and 7 key_tokens: one token for each position"):
        Recording.from_weights([made(batch=1, queries=7, keys=5)], SOURCE, key_tokens=TARGET)


def test_a_transposed_map_that_adds_up_both_ways_is_taken():
    weights = torch.eye(KEYS).roll(1, 0).expand(1, 6, KEYS, KEYS)
    assert same_bits(Recording.from_weights([weights], SOURCE).rows(0, [4]), weights[0][:, [4]])


@pytest.mark.parametrize(
    ("tokens", "key_tokens", "words"),
    [
        ([SOURCE], None, r"has a batch of 2 .* tokens are of one sequence"),
        ([SOURCE] * 3, None, r"has a batch of 2 .* tokens are of 3 sequences"),
        ([SOURCE, SOURCE[:9]], None, r"tokens has sequences of 9 and 11 tokens: .* padding included"),
        ([SOURCE] * 2, [SOURCE, SOURCE[:9]], r"key_tokens has sequences of 9 and 11 tokens"),
        ([SOURCE] * 2, SOURCE, r"key_tokens has 1 sequences, but tokens has 2: the same batch"),
        ([SOURCE[:10]] * 2, None, r"has 11 queries and 11 keys .* there are 10 tokens: one token for each position"),
    ],
)
def test_tokens_that_do_not_fit(tokens: Tokens, key_tokens: Tokens | None, words):
    with pytest.raises(ValueError, match=words):
        Recording.from_weights([made()], tokens, key_tokens=key_tokens)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": [1, 2]}, "layers names 2 numbers, but weights has 1 entries"),
        ({"layers": [-1]}, "layers holds -1: layers count from 0"),
        ({"heads": [1, 2]}, r"heads names 2 numbers, but weights\[0\] has 6 heads \(shape \(2, 6, 11, 11\)\)"),
        ({"heads": [0, 1, 2, 3, 4, 4]}, r"layer 0: heads \[0, 1, 2, 3, 4, 4\] names one twice"),
        ({"heads": [0, 1, 2, 3, 4, -5]}, r"layer 0: heads -5 out of range"),
    ],
)
def test_numbers_that_do_not_fit(options, words):
    with pytest.raises(ValueError, match=words):
        of(made(), **options)
    with pytest.raises(ValueError, match=r"layer indices \[3, 3\] name one twice"):
        Recording.from_weights([made()] * 2, two(SOURCE), layers=[3, 3])


@pytest.mark.parametrize("weights", [[], [None, None]])
def test_no_weights_at_all(weights):
    with pytest.raises(ValueError, match=r"weights (is empty|holds nothing but None): .*attn_implementation='eager'"):
        Recording.from_weights(weights, SOURCE)


class TestTheRealThing:
    """What a model returns, and what is seen when it is observed."""

    @pytest.fixture
    def model(self):
        transformers = pytest.importorskip("transformers")
        config = transformers.BertConfig(
            vocab_size=53, hidden_size=30, num_hidden_layers=3, num_attention_heads=5, intermediate_size=37,
            max_position_embeddings=31, attn_implementation="eager", initializer_range=0.5,
        )  # fmt: skip
        return transformers.BertModel(config).eval()

    def inputs(self):
        valid = torch.ones(2, 13, dtype=torch.int64)
        valid[1, 9:] = 0
        return {"input_ids": torch.randint(53, (2, 13)), "attention_mask": valid}

    def test_the_weights_that_bert_returns_are_those_that_are_seen(self, model):
        from multihead.lens import observe

        inputs = self.inputs()
        tokens = [[f"token{number}" for number in row] for row in inputs["input_ids"].tolist()]
        with torch.no_grad():
            attentions = model(**inputs, output_attentions=True).attentions
            with observe(model) as seen:
                model(**inputs)
        given = Recording.from_weights(attentions, tokens)
        observed = seen.recording(tokens=tokens)
        assert [layer.index for layer in given] == [layer.index for layer in observed] == [0, 1, 2]
        assert given.texts == observed.texts
        worst = 0.0
        for layer, theirs in zip(given, attentions, strict=True):
            for item in range(2):
                mine = given.rows(layer.index, range(13), item=item)
                assert torch.equal(mine, theirs[item])
                worst = max(worst, float((mine - observed.rows(layer.index, range(13), item=item)).abs().max()))
        assert worst <= 1e-5
        assert float(attentions[0].std()) > 1e-2
        for mine, theirs in zip(given, observed, strict=True):
            assert torch.allclose(mine.statistics.entropy, theirs.statistics.entropy, atol=1e-5)
        links = [recording.top(4, count=5, item=1) for recording in (given, observed)]
        assert [link.key_token for link in links[0]] == [link.key_token for link in links[1]]
