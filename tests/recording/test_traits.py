"""The traits of heads are what their definitions say of the formula's weights, read or measured."""

import dataclasses
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import multihead
from multihead import masks
from multihead.core import AttentionCall, Measurements, Statistics, reference
from multihead.errors import RecordingError
from multihead.kernels import tiles
from multihead.recording import HeadTraits, Recording, trait_sums
from multihead.recording.traits import LABELS, label
from tests.accuracy import OPTIONS, check, mask_examples, plain, random_bool, random_call
from tests.recording.examples import selected

LQ, LK = 43, 47
"""Far enough apart that some keys are far: at least 32 tokens."""
TOKENS = ["[CLS]", *("," if place % 5 == 0 else f"word{place}" for place in range(1, LK - 1)), "[SEP]"]
MARKS = [place % 5 == 0 or place == LK - 1 for place in range(LK)]
NUMBERS = [one.name for one in dataclasses.fields(HeadTraits) if one.name not in ("layer", "head", "label")]
POSITIONAL = ("distance", "previous", "itself", "next", "far")
MASKS = mask_examples(LQ, LK)
HIDDEN = {"padding": MASKS["padding"].valid, "causal padding": MASKS["causal padding"].right.valid}
"""Where a mask hides keys as padding."""


def defined(weights, sink, visible, *, sinks, marks=None, positions=None, real=None, first=0):
    """Each trait of each head by its definition, NaN where there is none; from all weights, (heads, queries, keys)."""
    heads, _, keys = weights.shape
    found = {name: [] for name in NUMBERS}
    for every, left, allowed in zip(weights, sink, visible.expand(heads, -1, -1), strict=True):
        chosen = [row for row in range(len(every)) if allowed[row].any() and (real is None or real[row])]
        w, s, seen = every[chosen], left[chosen], allowed[chosen]
        total = w.new_tensor(float(len(chosen)))
        entropy = [torch.special.entr(torch.cat([row, rest[None]])).sum() for row, rest in zip(w, s, strict=True)]
        outcomes = [int(row.sum()) + sinks for row in seen]
        shares = [one / math.log(count) for one, count in zip(entropy, outcomes, strict=True) if count > 1]
        found["entropy"].append(sum(entropy) / total)
        found["spread"].append(sum(shares) / w.new_tensor(float(len(shares))))
        found["first"].append(w[:, first].sum() / total)
        found["sink"].append((w[:, first].sum() + s.sum()) / total)
        found["delimiters"].append(math.nan if marks is None else w[:, marks].sum() / total)
        received = w.sum(0)[seen.any(0)]
        differences = (received[:, None] - received).abs().sum()
        found["concentration"].append(differences / (2 * len(received) * received.sum()))
        apart = None if positions is None else torch.tensor(positions)[chosen, None] - torch.arange(keys)
        for name, kernel in {
            "distance": lambda d: d.abs(),
            "previous": lambda d: d == 1,
            "itself": lambda d: d == 0,
            "next": lambda d: d == -1,
            "far": lambda d: d.abs() >= 32,
        }.items():
            found[name].append(math.nan if apart is None else (w * kernel(apart)).sum() / total)
    return {name: torch.stack([torch.as_tensor(one) for one in column]) for name, column in found.items()}


def definitions(call: AttentionCall, item, *, heads=None, queries=None, **known):
    """By the formula in float64, and in the call's own precision."""
    heads = range(call.sizes.heads) if heads is None else heads
    queries = range(call.sizes.queries) if queries is None else queries
    seen = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    if call.mask is not None:
        seen = call.mask.visible(torch.arange(call.sizes.queries), torch.arange(call.sizes.keys), call.sizes)
    seen = seen.expand(call.sizes.batch, call.sizes.heads, call.sizes.queries, call.sizes.keys)
    places = (item, torch.tensor(heads)[:, None], torch.tensor(queries))
    return [
        defined(one.weights[places], one.sink[places], seen[places], sinks=call.sinks is not None, **known)
        for one in (reference(call), plain(call))
    ]


def compare(found: list[HeadTraits], exact, simple, names=NUMBERS):
    """Each trait passes the bar, and is None where the definition has none."""
    for name in names:
        column = torch.tensor([math.nan if getattr(one, name) is None else getattr(one, name) for one in found])
        assert torch.equal(column.isnan(), exact[name].isnan()), f"{name}: {column} where {exact[name]} was expected"
        # sums of up to 47 weights, and means of them, each rounded
        bar = [tensor.nan_to_num(0.0) for tensor in (column, exact[name].double(), simple[name].float())]
        check(*bar, name)


def recording(*layers, tokens=TOKENS):
    return Recording(layers, {"text": [list(tokens)] * layers[0].sizes.batch} if tokens else {})


def call_of(mask=None, **options):
    return random_call(queries=LQ, keys=LK, mask=mask, **options)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("mask", MASKS)
def test_definitions(mask, options):
    call = call_of(MASKS[mask], **OPTIONS[options])
    positions = [query + LK - LQ for query in range(LQ)]
    for item in range(2):
        known = {"marks": MARKS, "positions": positions}
        if mask in HIDDEN:
            valid = HIDDEN[mask][item]
            known |= {"real": valid[positions], "first": int(valid.nonzero()[0, 0])}
        found = recording(selected(call)).traits(item=item)
        assert [(one.layer, one.head) for one in found] == [(0, head) for head in range(6)]
        compare(found, *definitions(call, item, **known))


@pytest.mark.parametrize("options", ["plain", "all"])
@pytest.mark.parametrize("mask", MASKS)
def test_some_heads_and_queries(mask, options):
    call = call_of(MASKS[mask], **OPTIONS[options])
    heads, queries = [5, 0, 3], [40, 2, 17, 18, 5]
    positions = [query + LK - LQ for query in queries]
    known = {"heads": heads, "queries": queries, "marks": MARKS, "positions": positions}
    if mask in HIDDEN:
        valid = HIDDEN[mask][1]
        known |= {"real": valid[positions], "first": int(valid.nonzero()[0, 0])}
    found = recording(selected(call, heads=heads, queries=queries)).traits(item=1)
    assert [one.head for one in found] == heads
    compare(found, *definitions(call, 1, **known))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype):
    call = call_of(masks.causal(), dtype=dtype)
    exact, simple = definitions(call, 0, marks=MARKS, positions=[query + LK - LQ for query in range(LQ)])
    compare(recording(selected(call)).traits(), exact, simple)


def test_the_comparison_would_notice():
    call = call_of(masks.causal(), sinks=True)
    positions = [query + LK - LQ for query in range(LQ)]
    found = recording(selected(call)).traits()
    wrong = {
        "heads": {"heads": [1, 0, 2, 3, 4, 5]},
        "positions": {"positions": [place - 1 for place in positions]},
        "marks": {"marks": MARKS[1:] + MARKS[:1]},
        "first": {"first": 1},
        "real": {"real": [False] + [True] * (LQ - 1)},
    }
    for change in wrong.values():
        other = definitions(call, 0, **{"marks": MARKS, "positions": positions} | change)
        with pytest.raises(AssertionError, match=r"error .* allowed"):
            compare(found, *other)


def test_between_two_texts_there_is_no_distance():
    call = call_of(HIDDEN_SOURCE := masks.padding(random_bool(2, LK, seed=6)))
    cross = selected(call, index=0, query_text="target", key_text="source")
    # only the decoder's own attention says which queries are padding
    own = random_call(queries=LQ, keys=LQ, mask=masks.causal() & masks.padding(random_bool(2, LQ, seed=7)))
    layers = (cross, selected(own, index=1, query_text="target", key_text="target"))
    texts = {"source": [TOKENS] * 2, "target": [["a"] * LQ] * 2}
    found = Recording(layers, texts).traits(layers=[0], item=1)
    known = {"first": int(HIDDEN_SOURCE.valid[1].nonzero()[0, 0]), "real": own.mask.right.valid[1], "marks": MARKS}
    compare(found, *definitions(call, 1, **known))
    assert all(getattr(one, name) is None for one in found for name in POSITIONAL)


def test_more_queries_than_keys_have_no_distance():
    call = random_call(queries=LK, keys=LQ)
    found = Recording((selected(call),), {}).traits()
    assert all(getattr(one, name) is None for one in found for name in (*POSITIONAL, "delimiters"))
    assert all(one.entropy is not None and one.concentration is not None for one in found)


EVERY = Statistics(received=True, offsets=True, sink=True, columns=(3, 0))


@pytest.mark.parametrize("mask", ["none", "causal", "documents", "prefix", "two-sided window"])
@pytest.mark.parametrize("options", ["plain", "all"])
def test_what_was_recorded_is_read_and_nothing_is_measured(monkeypatch, mask, options):
    call = call_of(MASKS[mask], **OPTIONS[options])
    layer = selected(call, statistics=EVERY)
    compact = dataclasses.replace(layer, q=None, k=None)
    monkeypatch.setattr(trait_sums, "measure", None)
    exact, simple = definitions(call, 1, marks=MARKS, positions=[query + LK - LQ for query in range(LQ)])
    names = [name for name in NUMBERS if name not in ("distance", "delimiters")]
    for one, options in ((layer, {"measure": False}), (compact, {})):
        found = recording(one).traits(item=1, **options)
        compare(found, exact, simple, names)
        # bins of powers of two do not tell a mean, and no statistic knows the tokens
        assert all(one.distance is None and one.delimiters is None for one in found)


def test_measuring_adds_only_what_is_missing():
    call = call_of(masks.causal())
    layer = selected(call, statistics=EVERY)
    lie = dataclasses.replace(layer.statistics, entropy=torch.zeros_like(layer.statistics.entropy))
    found = recording(dataclasses.replace(layer, statistics=lie)).traits()
    exact, simple = definitions(call, 0, marks=MARKS, positions=[query + LK - LQ for query in range(LQ)])
    compare(found, exact, simple, [name for name in NUMBERS if name not in ("entropy", "spread")])
    assert all(one.entropy == one.spread == 0.0 for one in found)


@pytest.mark.parametrize(
    ("edges", "told"),
    [
        (tuple(range(-LK, LK + 1)), set(POSITIONAL)),
        (tuple(range(LK + 1)), {"previous", "itself"}),
        ((-31, -1, 0, 1, 2, 32, 64), {"previous", "itself", "next"}),
        ((-64, -31, -1, 0, 1, 2, 32, 64), {"previous", "itself", "next", "far"}),
        ((-64, -31, 2, 32, 64), {"far"}),
        ((-64, -30, 32, 64), set()),
    ],
)
def test_bins_of_distance_say_what_they_can(edges, told):
    call = call_of()
    layer = selected(call, statistics=Statistics(offsets=edges))
    found = recording(layer).traits(measure=False)
    exact, simple = definitions(call, 0, positions=[query + LK - LQ for query in range(LQ)])
    compare(found, exact, simple, told)
    assert all(getattr(one, name) is None for one in found for name in set(POSITIONAL) - told)


def test_sums_that_hold_padding_are_not_read():
    valid = HIDDEN["padding"]
    layer = selected(call_of(masks.padding(valid)), statistics=EVERY)
    found = recording(layer).traits(measure=False, item=0)
    assert not valid[0, LK - LQ :].all()
    assert all(getattr(one, name) is None for one in found for name in (*POSITIONAL, "concentration"))
    assert all(one.entropy is not None for one in found)


def test_without_a_range_the_mask_is_not_read_pair_by_pair(monkeypatch):
    call = call_of(MASKS["dense per head"])
    monkeypatch.setattr(trait_sums, "_counted", None)
    found = recording(selected(call, statistics=EVERY)).traits(measure=False, item=1)
    known = {"marks": MARKS, "positions": [query + LK - LQ for query in range(LQ)]}
    names = [name for name in NUMBERS if name not in ("distance", "delimiters", "concentration")]
    compare(found, *definitions(call, 1, **known), names)
    assert all(one.concentration is None for one in found)
    unseen = selected(call, statistics=Statistics(visible=False))
    assert all(getattr(one, name) is None for one in recording(unseen).traits(measure=False) for name in NUMBERS)


def test_a_recording_without_queries_and_keys_says_what_it_can():
    layer = selected(call_of(sinks=True), statistics=Statistics.only(lse=True))
    found = recording(dataclasses.replace(layer, q=None, k=None)).traits()
    assert all(getattr(one, name) is None for one in found for name in NUMBERS)
    assert {one.label for one in found} == {""}
    bare = dataclasses.replace(layer, q=None, k=None, statistics=Measurements())
    assert len(recording(bare).traits()) == 6


def test_queries_and_keys_without_the_log_sum_exp_are_enough():
    call = call_of(MASKS["causal padding"], **OPTIONS["all"])
    bare = recording(selected(call, statistics=Statistics.only()))
    assert bare.layers[0].statistics.lse is None
    for found, expected in zip(bare.traits(item=1), recording(selected(call)).traits(item=1), strict=True):
        assert dataclasses.astuple(found)[:3] == dataclasses.astuple(expected)[:3]
        for name in NUMBERS:
            assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("mask", ["none", "causal"])
def test_weights_that_were_given(mask):
    call = random_call(queries=LK, keys=LK, mask=MASKS[mask])
    given = Recording.from_weights([reference(call).weights], [TOKENS] * 2)
    exact, _ = definitions(call, 1, marks=MARKS, positions=list(range(LK)))
    compare(given.traits(item=1), exact, exact)
    read = given.traits(item=1, measure=False)
    # how many queries see something is not known before the weights are looked at
    assert all(getattr(one, name) is None for one in read for name in NUMBERS)


@pytest.mark.parametrize("sizes", [{"queries": 0, "keys": 5}, {"queries": 0, "keys": 0}, {"queries": 3, "keys": 0}])
def test_empty(sizes):
    layer = selected(random_call(**sizes))
    found = Recording((layer,), {"text": [["x"] * sizes["keys"]] * 2} if sizes["queries"] <= sizes["keys"] else {})
    assert all(getattr(one, name) is None for one in found.traits() for name in NUMBERS)


def test_one_token_has_no_choice():
    (one, *_) = Recording((selected(random_call(queries=1, keys=1)),), {"text": [["x"]] * 2}).traits()
    assert (one.itself, one.first, one.distance, one.entropy, one.concentration) == (1.0, 1.0, 0.0, 0.0, 0.0)
    assert one.spread is None


class Largest(TorchDispatchMode):
    """Remembers how many entries the largest tensor had that any operation made."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        answer = function(*args, **(kwargs or {}))
        if not any(result.alias_info for result in function._schema.returns):
            tensors = [leaf for leaf in tree_leaves(answer) if isinstance(leaf, torch.Tensor)]
            self.entries = max([self.entries, *(tensor.numel() for tensor in tensors)])
        return answer


@pytest.mark.parametrize("mask", [masks.causal(), masks.causal() | ~masks.sliding_window(5)], ids=["range", "pairs"])
def test_memory_is_linear(monkeypatch, mask):
    length = 2053
    monkeypatch.setattr(tiles, "TILE_SCORES", 1 << 17)
    monkeypatch.setattr(trait_sums, "_COUNTED", 1 << 17)
    layer = selected(random_call(torch.float64, heads=1, kv_heads=1, queries=length, keys=length, mask=mask))
    with Largest() as largest:
        assert recording(layer, tokens=["x"] * length).traits()[0].entropy is not None
    assert largest.entries < length**2 / 10


def looking(target, *, length=80, mask=None, sharp=40.0):
    """One head whose query i looks at key target(i) alone, or at several the same."""
    wanted = torch.zeros(length, length, dtype=torch.float64)
    for query in range(length):
        chosen = target(query)
        wanted[query, chosen if isinstance(chosen, list) else [chosen]] = sharp
    eye = torch.eye(length, dtype=torch.float64)
    return AttentionCall(wanted[None, None], eye[None, None], eye[None, None], mask, scale=1.0)


MADE = {
    "previous token": lambda i: max(i - 1, 0),
    "next token": lambda i: min(i + 1, 79),
    "itself": lambda i: i,
    "first token": lambda i: 0,
    "delimiters": lambda i: [17, 23],
    "broad": lambda i: list(range(80)),
    "long-range": lambda i: (i + 40) % 80,
    "": lambda i: [(i + 5) % 80, (i + 9) % 80],
}


@pytest.mark.parametrize("kind", MADE)
def test_a_head_made_for_each_label(kind):
    words = ["." if place in (17, 23) else f"word{place}" for place in range(80)]
    call = looking(MADE[kind])
    (found,) = recording(selected(call), tokens=words).traits()
    assert found.label == kind, found


def test_a_broad_head_under_a_causal_mask_is_broad():
    call = looking(lambda i: list(range(80)), mask=masks.causal())
    (found,) = recording(selected(call), tokens=["x"] * 80).traits()
    assert found.label == "broad"
    assert found.spread == pytest.approx(1.0)
    assert found.entropy == pytest.approx(sum(math.log(place + 1) for place in range(80)) / 80)


def test_labels_by_their_thresholds_in_their_order():
    for place, (name, trait, least) in enumerate(LABELS):
        below = math.nextafter(least, 0.0)
        assert label(HeadTraits(layer=0, head=0, **{trait: least})) == name
        assert label(HeadTraits(layer=0, head=0, **{trait: below})) == ""
        later = {other: 1.0 for _, other, _ in LABELS[place + 1 :]}
        assert label(HeadTraits(layer=0, head=0, **later, **{trait: least})) == name
    assert [name for name, _, _ in LABELS] == [kind for kind in MADE if kind]


def test_concentration_is_the_share_of_inequality():
    to_one = recording(selected(looking(lambda i: 7)), tokens=["x"] * 80).traits()[0]
    to_all = recording(selected(looking(lambda i: i)), tokens=["x"] * 80).traits()[0]
    assert to_one.concentration == pytest.approx(79 / 80)
    assert to_all.concentration == pytest.approx(0.0, abs=1e-12)


def test_read_again_from_a_file_nothing_differs(tmp_path):
    call = call_of(MASKS["causal padding"], **OPTIONS["all"])
    kept = recording(selected(call, statistics=EVERY))
    kept.save(tmp_path / "run.safetensors")
    again = multihead.load(tmp_path / "run.safetensors")
    assert again.traits(item=1) == kept.traits(item=1)
    assert again.traits(item=1, measure=False) == kept.traits(item=1, measure=False)


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_where_the_numbers_lie_in_memory_makes_no_difference(offset):
    """Files begin their tensors anywhere, and products of a few rows differ in the last bit by where they begin."""
    layer = selected(random_call(heads=12, kv_heads=12, queries=5, keys=5, dim=64))
    q, k = (torch.empty(one.numel() + offset)[offset:].view(one.shape).copy_(one) for one in (layer.q, layer.k))
    moved = dataclasses.replace(layer, q=q, k=k)
    assert q.data_ptr() % 16 == k.data_ptr() % 16 == 4 * offset
    assert recording(moved, tokens=["x"] * 5).traits() == recording(layer, tokens=["x"] * 5).traits()


def test_printed_they_are_a_table():
    call = call_of(masks.causal())
    found = recording(selected(call, heads=[0, 3], index=12), tokens=None).traits()
    lines = repr(found).splitlines()
    assert lines[0].split()[:5] == ["layer", "head", "label", "entropy", "spread"]
    assert [line.split()[:2] for line in lines[1:]] == [["12", "0"], ["12", "3"]]
    assert f"{found[0].entropy:.2f}" in lines[1]
    assert lines[1].split()[-2] == "-"
    assert len({len(line) for line in lines}) == 1


def test_what_is_not_there_is_refused():
    kept = recording(selected(call_of()))
    with pytest.raises(RecordingError, match="layer 3 was not recorded: recorded are 0"):
        kept.traits(layers=[3])
    with pytest.raises(RecordingError, match="there is no sequence 2"):
        kept.traits(item=2)
