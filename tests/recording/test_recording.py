"""What a recording says about itself, where tokens stand, and the strongest links."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch

from multihead import masks
from multihead.core import Measurements, Statistics, reference
from multihead.errors import RecordingError, SourceError
from multihead.masks import Sizes
from multihead.recording import Layer, Link, Recording
from tests.accuracy import mask_examples, random_call
from tests.recording.examples import TOKENS, recording_of, same_bits, selected
from tests.recording.test_query import Diagonals

LENGTH = len(TOKENS)


def square(**options):
    """A self-attention over the tokens."""
    return random_call(queries=LENGTH, **options)


@pytest.fixture
def recording():
    return recording_of(*(selected(square(seed=seed), index=seed) for seed in (0, 2, 3)))


class TestLooks:
    def test_repr(self, recording):
        assert repr(recording) == "Recording of Toy: 3 layers × 6 heads, 2 sequences of 11 tokens"
        assert repr(recording.sequence(0)) == "Recording of Toy: 3 layers × 6 heads, 11 tokens"
        assert repr(recording.layers[1]) == "Layer 2 (encoder.2): 6 heads, 11 queries × 11 keys"

    def test_repr_of_a_part(self):
        one, two = selected(square(), heads=[4]), selected(square(), index=1, heads=[1, 3], queries=[0, 5])
        assert repr(recording_of(one)) == "Recording of Toy: 1 layer × 1 of 6 heads, 2 sequences of 11 tokens"
        assert "2 layers × 1 to 2 heads" in repr(recording_of(one, two))
        assert repr(two) == "Layer 1 (encoder.1): 2 of 6 heads, 2 queries × 11 keys"

    def test_repr_without_anything(self):
        assert repr(Recording((), {})) == "Recording of an unnamed model: 0 layers × no heads, 0 keys"

    def test_repr_of_two_texts(self):
        layer = selected(random_call(), query_text="target", key_text="source")
        texts = {"source": [["x"] * 11] * 2, "target": [["y"] * 7] * 2}
        assert repr(Recording((layer,), texts)).endswith(
            "source of 2 sequences of 11 tokens and target of 2 sequences of 7 tokens"
        )

    def test_a_model_name_is_data(self, recording):
        assert "\x1b" not in repr(replace(recording, provenance={"model": "\x1b[31m"}))

    def test_length_and_iteration(self, recording):
        assert len(recording) == 3
        assert [layer.index for layer in recording] == [0, 2, 3]
        assert recording.batch == 2

    def test_a_layer_by_its_index(self, recording):
        assert recording.layer(2) is recording.layers[1]
        with pytest.raises(RecordingError, match=r"layer 1 was not recorded: recorded are 0, 2 and 3\."):
            recording.layer(1)

    def test_frozen(self, recording):
        with pytest.raises(FrozenInstanceError):
            recording.layers = ()


class TestWhatDoesNotFit:
    """Under pytest shapes are checked by annotation too; users meet these sentences."""

    pytestmark = pytest.mark.usefixtures("as_users_run")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"heads": (0, 1, 2, 3, 4, 6)}, "heads 6 out of range: valid are 0 to 5"),
            ({"heads": (0, 1, 2, 3, 4, 4)}, "names one twice"),
            ({"heads": (0, 1)}, r"q has shape \(2, 6, 11, 5\), expected the axes batch 2, head 2, query 11 and dim"),
            ({"queries": (0, 11)}, "queries 11 out of range"),
            ({"queries": (0, 1)}, "expected the axes batch 2, head 6, query 2"),
            ({"kv_heads": (0,)}, "6 heads but 1 key heads named"),
            ({"kv_heads": (0, 1, 2, 3, 3, 5)}, "key heads 3 and 5 are not among the 3 that were kept"),
            ({"k": None}, "q and k are kept together or not at all"),
            ({"k": torch.zeros(2, 3, 11, 7)}, "differ in last axis or dtype"),
            ({"k": torch.zeros(2, 3, 11, 5).double()}, "differ in last axis or dtype"),
            (
                {"k": torch.zeros(2, 3, 13, 5)},
                r"k has shape \(2, 3, 13, 5\), expected the axes batch 2, kv_head, key 11",
            ),
            ({"q": torch.zeros(2, 6, 11, 5).long()}, "q has dtype torch.int64, expected a floating-point type"),
            ({"bias": torch.zeros(2, 6, 11, 7)}, "bias has shape"),
            ({"bias": torch.zeros(11, 11)}, "bias has shape"),
            ({"sinks": torch.zeros(5)}, "sinks has shape"),
            ({"scale": float("nan")}, "scale=nan is no finite number"),
            ({"softcap": 0.0}, "softcap=0.0 is no positive number"),
            ({"mask": masks.padding(torch.ones(2, 7, dtype=torch.bool))}, "padding mask of shape"),
            ({"measured": {"lse": torch.zeros(2, 6, 7)}}, "statistics.lse has shape"),
            ({"measured": {"entropy": torch.zeros(2, 1, 11)}}, "statistics.entropy has shape"),
            ({"measured": {"visible": torch.zeros(2, 1, 11)}}, "statistics.visible has dtype torch.float32"),
            (
                {"measured": {"top_weights": torch.zeros(2, 6, 11, 3), "top_keys": torch.zeros(2, 6, 11, 2).long()}},
                "statistics.top_keys has shape .*rank 3",
            ),
            (
                {"measured": {"rows": torch.zeros(2, 6, 3, 11), "row_queries": torch.zeros(2).long()}},
                "statistics.row_queries has shape .*row 3",
            ),
            (
                {"measured": {"offsets": torch.zeros(2, 6, 3), "offset_edges": torch.zeros(3).long()}},
                "3 distance bins need 4 edges, but there are 3",
            ),
            (
                {"measured": {"blocks": torch.zeros(2, 6, 3, 2), "block_peaks": torch.zeros(2, 6, 3, 4)}},
                "statistics.block_peaks has shape .*query_block 3 and key_block 2",
            ),
        ],
    )
    def test_in_a_layer(self, change, words):
        layer = selected(square(), index=4)
        if "measured" in change:
            change = {"statistics": Measurements(**change["measured"])}
        with pytest.raises(ValueError, match=f"layer 4: .*{words}"):
            replace(layer, **change)

    def test_two_layers_of_one_index(self):
        layer = selected(square())
        with pytest.raises(ValueError, match=r"layer indices \[0, 0\] name one twice"):
            recording_of(layer, layer)

    def test_a_text_of_another_length(self):
        with pytest.raises(ValueError, match="text 'text' has 10 tokens, but the longest attention over it has 11"):
            recording_of(selected(square()), tokens=TOKENS[1:])

    def test_a_text_of_another_batch(self):
        with pytest.raises(ValueError, match="text 'text' has 1 sequence, but its layers have a batch of 2"):
            Recording((selected(square()),), {"text": [TOKENS]})


class TestPositions:
    def test_tokens_words_and_numbers(self, recording):
        assert recording.positions("less") == (7,)
        assert recording.positions("making") == (3, 4)
        assert recording.positions("governments") == (5, 6)
        assert recording.positions("govern") == (5, 9)
        assert recording.positions("govern", occurrence=1) == (9,)
        assert recording.positions(10) == (10,)

    def test_what_is_not_there(self, recording):
        with pytest.raises(
            SourceError,
            match=r"'goverments' is not among the 11 tokens: did you mean governments \(govern \+ ##ments\), ",
        ):
            recording.positions("goverments")
        with pytest.raises(
            SourceError, match="'qqqqqqqq' is not among the 11 tokens: a number names a position instead"
        ):
            recording.positions("qqqqqqqq")
        with pytest.raises(SourceError, match=r"position 11 is not in the text: it has positions 0 to 10\."):
            recording.positions(11)
        with pytest.raises(SourceError, match=r"'govern' occurs 2 times: occurrence is one of 0 and 1\."):
            recording.positions("govern", occurrence=2)
        with pytest.raises(SourceError, match=r"there is no text 'source': texts are 'text'\."):
            recording.positions("less", "source")
        with pytest.raises(RecordingError, match="there is no sequence 2"):
            recording.positions("less", item=2)

    def test_the_sequence_of_the_batch(self):
        recording = Recording((selected(square()),), {"text": [TOKENS, TOKENS[::-1]]})
        assert recording.positions("less", item=1) == (3,)

    def test_one_of_several_texts(self):
        layer = selected(random_call(), query_text="target", key_text="source")
        recording = Recording((layer,), {"source": [TOKENS] * 2, "target": [["so", "less"] + ["x"] * 5] * 2})
        assert recording.positions("less", "target") == (1,)
        with pytest.raises(SourceError, match="there are several texts: say which, text='source' or 'target'"):
            recording.positions("less")

    def test_without_texts(self):
        recording = Recording((selected(square()),), {})
        assert recording.positions(4) == (4,)
        assert recording.top(4, count=1)[0].query_token == "#4"


def every_link(recording: Recording, exact: dict[int, torch.Tensor]) -> list[Link]:
    """All links by the plain way, from (heads, Lq, Lk) weights of each layer."""
    return [
        Link(index, head, query, key, TOKENS[query], TOKENS[key], weights[head, query, key].item())
        for index, weights in exact.items()
        for head in recording.layer(index).heads
        for query in range(LENGTH)
        for key in range(LENGTH)
    ]


class TestTop:
    @pytest.fixture
    def calls(self):
        return {index: square(seed=index, mask=mask_examples(queries=LENGTH)["dense per head"]) for index in (0, 2, 5)}

    @pytest.fixture
    def recording(self, calls):
        return recording_of(*(selected(call, index=index) for index, call in calls.items()))

    @pytest.fixture
    def links(self, recording, calls):
        found = every_link(recording, {index: reference(call).weights[1] for index, call in calls.items()})
        return sorted((link for link in found if link.weight > 0), key=lambda link: -link.weight)

    def same(self, found: list[Link], expected: list[Link]) -> None:
        assert [replace(link, weight=0.0) for link in found] == [replace(link, weight=0.0) for link in expected]
        assert [link.weight for link in found] == pytest.approx([link.weight for link in expected], abs=1e-6)

    @pytest.mark.parametrize("word", ["less", "governments", "govern", 0])
    def test_from_and_to(self, recording, links, word):
        where = recording.positions(word)
        self.same(recording.top(word, item=1), [link for link in links if link.query in where][:10])
        expected = [link for link in links if link.key in where][:23]
        self.same(recording.top(word, item=1, direction="to", count=23), expected)

    def test_chosen_layers_and_heads(self, recording, links):
        expected = [link for link in links if link.query == 7 and link.layer in (5, 0) and link.head in (1, 4)][:7]
        self.same(recording.top("less", item=1, layers=[5, 0], heads=[1, 4], count=7), expected)

    def test_hidden_keys_are_no_links(self):
        recording = recording_of(selected(square(mask=masks.causal() & masks.sliding_window(2))))
        assert {(link.query, link.key) for link in recording.top("less", count=100)} == {(7, 7), (7, 6)}

    def test_ties_go_to_the_lower_numbers(self):
        call = square()
        call = replace(call, q=torch.zeros_like(call.q))
        found = recording_of(selected(call, index=1), selected(call, index=0)).top("less", count=12)
        assert [(link.layer, link.head, link.key) for link in found] == [(0, 0, key) for key in range(11)] + [(0, 1, 0)]

    def test_one_occurrence(self, recording):
        assert {link.query for link in recording.top("govern", count=50, occurrence=1)} == {9}

    def test_kept_queries_only(self):
        few, all_ = selected(square(), queries=[5, 0]), selected(square(seed=1), index=1)
        recording = recording_of(few, all_)
        found = recording.top("governments", count=500)
        assert {(link.layer, link.query) for link in found} == {(0, 5), (1, 5), (1, 6)}
        assert {link.query for link in recording.top("less", direction="to", layers=[0], count=500)} == {0, 5}
        with pytest.raises(RecordingError, match=r"query 7 of layer 0 was not recorded: its queries are 0 and 5\."):
            recording.top("less", layers=[0])

    def test_over_a_cache_the_queries_are_the_last_tokens(self):
        call = random_call(mask=masks.causal())
        recording = recording_of(selected(call))
        found = recording.top("less", count=100)
        assert {(link.query, link.query_token) for link in found} == {(3, "less")}
        assert {link.key for link in found} == set(range(8))

    def test_across_two_texts(self):
        layer = selected(random_call(), query_text="target", key_text="source")
        recording = Recording((layer,), {"source": [TOKENS] * 2, "target": [["so", "fewer"] + ["x"] * 5] * 2})
        link = recording.top("fewer", count=1)[0]
        assert (link.query, link.query_token) == (1, "fewer")
        assert link.key_token == TOKENS[link.key]
        assert {link.key for link in recording.top("less", direction="to", text="source", count=100)} == {7}
        with pytest.raises(SourceError, match="'less' is not among the 7 tokens"):
            recording.top("less")
        with pytest.raises(SourceError, match="no layer looks at a text 'sauce': texts are 'source' and 'target'"):
            recording.top("less", text="sauce")

    def test_bad_questions(self, recording):
        with pytest.raises(SourceError, match=r"did you mean less\?"):
            recording.top("lesss")
        with pytest.raises(RecordingError, match="layer 1 was not recorded: recorded are 0, 2 and 5"):
            recording.top("less", layers=[1])
        with pytest.raises(RecordingError, match="head 6 was not recorded: recorded are 0 to 5"):
            recording.top("less", heads=[6])
        with pytest.raises(ValueError, match="count=0 asks for no link"):
            recording.top("less", count=0)
        with pytest.raises(RecordingError, match="there is no sequence 5"):
            recording.top("less", item=5)

    def test_direction(self, recording, as_users_run):
        with pytest.raises(ValueError, match=r"direction='up' is neither 'from' .* nor 'to'"):
            recording.top("less", direction="up")

    def test_without_queries_and_keys(self):
        with pytest.raises(RecordingError, match="observe with qk=True"):
            recording_of(selected(square(), q=None, k=None)).top("less")


class TestTile:
    def test_slices_count_by_the_models_numbers(self):
        layer = selected(square(), queries=[2, 3, 8])
        recording = recording_of(layer)
        assert same_bits(recording.tile(0, slice(2, 4), slice(-3, None)), recording.rows(0, [2, 3])[..., 8:])
        assert recording.tile(0, slice(None), range(0, 11, 5)).shape == (6, 3, 3)
        with pytest.raises(RecordingError, match="query 4 of layer 0 was not recorded: its queries are 2, 3 and 8"):
            recording.tile(0, slice(2, 5), slice(None))


MASKS = mask_examples(queries=LENGTH) | {
    "unknown": Diagonals(),
    "unknown inside": Diagonals() | masks.padding(torch.rand(2, LENGTH) > 0.5),
    "documents": masks.documents(torch.arange(2 * LENGTH).view(2, LENGTH) // 4),
}


class TestSequence:
    @pytest.mark.parametrize("mask", MASKS)
    @pytest.mark.parametrize("bias", [None, (2, 6, 11, 11), (1, 1, 11, 11)])
    def test_it_is_what_the_batch_held(self, mask, bias):
        bias = None if bias is None else torch.randn(bias)
        layer = selected(square(mask=MASKS[mask], bias=bias, sinks=True), statistics=Statistics.every(top=3, block=4))
        recording = recording_of(layer)
        one = recording.sequence(1)
        assert one.batch == 1
        assert one.layers[0].sizes == Sizes(1, 6, 11, 11)
        assert one.texts == {"text": [TOKENS]}
        assert same_bits(one.rows(0, range(11)), recording.rows(0, range(11), item=1))
        for name, tensor in layer.statistics.named().items():
            found = getattr(one.layers[0].statistics, name)
            assert same_bits(found, tensor if tensor.ndim == 1 else tensor[1:]), name

    def test_of_one(self):
        recording = recording_of(selected(square(batch=1)))
        assert recording.sequence(0) is recording

    def test_that_is_not_there(self, recording):
        with pytest.raises(RecordingError, match=r"there is no sequence 2: recorded are 0 and 1\."):
            recording.sequence(2)

    def test_of_batches_that_differ(self):
        recording = Recording((selected(square()), selected(square(batch=3), index=1)), {})
        with pytest.raises(RecordingError, match=r"the batches differ, 2 and 3: no sequence is the same"):
            recording.sequence(0)
        assert recording.rows(1, [0], item=2).shape == (6, 1, 11)
        with pytest.raises(RecordingError, match="there is no sequence 2"):
            recording.rows(0, [0], item=2)

    def test_of_a_text_nobody_reads(self):
        recording = Recording((selected(square()),), {"text": [TOKENS] * 2, "other": []})
        with pytest.raises(RecordingError, match="the batches differ, 0 and 2"):
            recording.sequence(1)
        with pytest.raises(RecordingError, match="there is no sequence 0: recorded are none"):
            recording.positions("less", "other")

    def test_with_few_things_kept(self):
        layer = Layer(index=0, name="a", host="sdpa", sizes=Sizes(2, 3, 5, 7), heads=(1,))
        assert Recording((layer,), {}).sequence(1).layers[0].sizes.batch == 1


@pytest.mark.usefixtures("as_users_run")
class TestNumbersAsPeopleGiveThem:
    @pytest.fixture
    def recording(self):
        return recording_of(selected(square()))

    @pytest.mark.parametrize(
        ("ask", "message"),
        [
            (lambda r: r.rows(0, 8), r"queries=8 is no list of numbers: say queries=\[8\]\."),
            (lambda r: r.rows(0, [1.5]), r"queries contains 1\.5, which is no whole number"),
            (lambda r: r.rows(0, slice(2)), r"queries=slice\(None, 2, None\) is no list .*queries=range\(2\)"),
            (lambda r: r.rows(0, [1], heads=1), r"heads=1 is no list of numbers: say heads=\[1\]\."),
            (lambda r: r.rows(0, [1], heads={0: [1]}), r"heads=\{0: \[1\]\} is no list of numbers"),
            (lambda r: r.rows(0, [1], heads=[True]), "heads contains True, which is no whole number"),
            (lambda r: r.rows(0, [1], item=0.0), r"item=0\.0 is no whole number"),
            (lambda r: r.rows("0", [1]), "layer='0' is no whole number"),
            (lambda r: r.layer([0]), r"layer=\[0\] is no whole number"),
            (lambda r: r.columns(0, 8), r"keys=8 is no list of numbers: say keys=\[8\]\."),
            (lambda r: r.tile(0, 2, 3), r"queries=2 is neither slice nor range: say for example queries=range\(2, 5\)"),
            (lambda r: r.tile(0, slice(2), [3]), r"keys=\[3\] is neither slice nor range"),
            (lambda r: r.top(None), r"token=None is neither a word nor a position\."),
            (lambda r: r.top(2.5), r"token=2\.5 is neither a word nor a position"),
            (lambda r: r.positions(True), "token=True is neither a word nor a position"),
            (lambda r: r.positions("govern", occurrence=0.5), r"occurrence=0\.5 is no whole number"),
            (lambda r: r.top("less", count="3"), "count='3' is no whole number"),
            (lambda r: r.top("less", layers=0), r"layers=0 is no list of numbers: say layers=\[0\]\."),
            (lambda r: r.top("less", heads=1), r"heads=1 is no list of numbers: say heads=\[1\]\."),
        ],
    )
    def test_what_means_nothing_is_refused(self, recording, ask, message):
        with pytest.raises(TypeError, match=message):
            ask(recording)

    def test_numpys_and_torchs_numbers(self, recording):
        rows = recording.rows(0, [2, 5], heads=[1], item=1)
        queries, heads = np.array([2, 5]), torch.tensor([1])
        assert same_bits(recording.rows(np.int64(0), queries, heads=heads, item=np.int64(1)), rows)
        assert same_bits(recording.columns(0, torch.tensor([2])), recording.columns(0, [2]))
        assert recording.positions(np.int64(2)) == (2,)
        two = recording.top(2, count=3, layers=[0], heads=[4])
        assert recording.top(np.int64(2), count=np.int64(3), layers=np.array([0]), heads=(np.int8(4),)) == two
        assert recording.top(torch.tensor(2), count=3, heads=[4]) == two
