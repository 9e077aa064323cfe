"""A recording that was saved and opened again is the same, bit for bit, and opening it reads its header only."""

import copy
import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from multihead import masks
from multihead.core import AXES, Measurements, Statistics
from multihead.errors import RecordingError
from multihead.masks import Mask, Sizes
from multihead.recording import Layer, Recording, load, store
from multihead.recording.stored import StoredLayer
from tests.accuracy import OPTIONS, mask_examples, random_call
from tests.recording.examples import TOKENS, difference, recording_of, same_bits, same_mask, selected
from tests.recording.test_query import Diagonals

LENGTH = len(TOKENS)


def square(dtype=torch.float32, **options):
    return random_call(dtype, queries=LENGTH, **options)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.safetensors"


def again(recording: Recording, path: Path) -> Recording:
    recording.save(path)
    return load(path)


MASKS = mask_examples(queries=LENGTH) | {
    "left only": masks.sliding_window(left=3),
    "right only": masks.sliding_window(right=0),
    "dense, repeated": masks.dense((torch.rand(1, 1, 1, LENGTH) > 0.3).expand(2, 6, LENGTH, LENGTH)),
    "small integers": masks.documents(torch.arange(LENGTH, dtype=torch.int8) // 2),
    "deep": masks.causal() & ~(masks.prefix(2) | masks.dense(torch.rand(LENGTH, LENGTH) > 0.5))
    | masks.padding(torch.ones(LENGTH, dtype=torch.bool)),
}


class TestTheSameAgain:
    @pytest.mark.parametrize("mask", MASKS)
    def test_every_mask(self, path, mask):
        recording = recording_of(selected(square(mask=MASKS[mask])))
        assert difference(recording, again(recording, path)) is None

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_every_dtype_and_statistic(self, path, dtype):
        call = square(dtype, mask=masks.causal(), **OPTIONS["all"])
        recording = recording_of(selected(call, index=3, statistics=Statistics.every(top=3, block=4)))
        loaded = again(recording, path)
        assert difference(recording, loaded) is None
        assert len(loaded.layers[0].tensors()) == 4 + len(AXES)
        assert same_bits(loaded.rows(3, [2], item=1), recording.rows(3, [2], item=1))

    def test_parts_of_a_layer(self, path):
        layers = (
            selected(random_call(), index=2, heads=[5, 1], queries=[6, 2], host="transformers", name="a.b"),
            selected(random_call(), index=0, q=None, k=None, query_text="target", key_text="source"),
            Layer(index=7, name="", host="sdpa", sizes=Sizes(2, 6, 7, 11), heads=(), statistics=Measurements()),
        )
        recording = Recording(layers, {}, {})
        assert difference(recording, again(recording, path)) is None

    def test_empty(self, path):
        assert difference(Recording((), {}), again(Recording((), {}), path)) is None
        nothing = random_call(batch=1, queries=0, keys=0, mask=masks.dense(torch.ones(0, 0, dtype=torch.bool)))
        recording = Recording((selected(nothing),), {"text": [[]]})
        assert difference(recording, again(recording, path)) is None

    def test_a_bias_that_repeats(self, path):
        bias = torch.randn(1, 6, 1, LENGTH).expand(2, 6, LENGTH, LENGTH)
        recording = recording_of(selected(square(bias=bias)))
        assert difference(recording, again(recording, path)) is None
        assert path.stat().st_size < 30_000

    def test_numbers_nobody_sees(self, path):
        call = square(mask=masks.prefix(5))
        call.k[:, :, 5:] = torch.nan
        call.k[0, 0, 7, 1] = torch.inf
        recording = recording_of(selected(call))
        assert difference(recording, again(recording, path)) is None

    def test_unsigned_documents_become_signed(self, path, as_users_run):
        mask = masks.documents(torch.arange(LENGTH, dtype=torch.uint8) // 2)
        loaded = again(recording_of(selected(square(mask=mask))), path).layers[0].mask
        assert loaded.keys.dtype == torch.int64
        assert torch.equal(loaded.dense(LENGTH, LENGTH), mask.dense(LENGTH, LENGTH))

    def test_rows_that_see_nothing(self, path):
        recording = recording_of(selected(square(mask=masks.prefix(0))))
        loaded = again(recording, path)
        assert loaded.layers[0].statistics.lse.eq(-torch.inf).all()
        assert not loaded.rows(0, [1]).any()

    def test_of_a_loaded_one(self, path, tmp_path):
        recording = recording_of(selected(square(mask=MASKS["tree"])))
        second = again(again(recording, path), tmp_path / "second.safetensors")
        assert difference(recording, second) is None
        assert difference(recording, again(second.sequence(0), path)) == "texts"

    def test_over_itself(self, path):
        recording = recording_of()
        loaded = again(recording, path)
        loaded.save(path)
        assert difference(recording, loaded) is None
        assert difference(recording, load(path)) is None

    @pytest.mark.parametrize(
        "token",
        ["</script><img src=x>", "\x00\x1b\n\u2028", "\ud800", "é\N{GRINNING FACE}", "", "../../etc/passwd", "\\", '"'],
    )
    def test_tokens_are_data(self, path, token):
        tokens = [token, *TOKENS[1:]]
        layer = selected(square(), name=token, host=token, query_text=token, key_text=token)
        recording = Recording((layer,), {token: [tokens] * 2}, {token: token})
        assert difference(recording, again(recording, path)) is None
        assert sorted(file.name for file in path.parent.iterdir()) == [path.name]

    def test_the_comparison_sees_a_difference(self, path):
        recording = recording_of(selected(square(mask=MASKS["tree"])))
        layer = recording.layers[0]
        for change in (
            {"q": layer.q.clone().index_fill_(0, torch.tensor(1), 0.0)},
            {"mask": masks.causal()},
            {"scale": 0.3},
            {"heads": (1, 0, 2, 3, 4, 5)},
            {"statistics": Measurements()},
        ):
            assert difference(recording, replace(recording, layers=(replace(layer, **change),))) is not None
        assert not same_mask(masks.prefix(2), masks.prefix(3))
        assert not same_bits(torch.zeros(2), -torch.zeros(2))


class TestTheFile:
    def test_any_safetensors_reader_opens_it(self, path):
        recording = recording_of(selected(square(), index=2))
        recording.save(path)
        with safe_open(path, framework="np") as file:
            assert file.metadata().keys() == {"format", "schema", "recording", "crc32"}
            assert {"layers.2.q", "layers.2.k", "layers.2.statistics.entropy"} <= set(file.keys())
            assert (file.get_tensor("layers.2.q") == recording.layers[0].q.numpy()).all()

    def test_what_layers_share_is_stored_once(self, path):
        valid = torch.rand(2, LENGTH) > 0.3
        shared = masks.causal() & masks.padding(valid)
        bias = torch.randn(1, 6, LENGTH, LENGTH)
        layers = [selected(square(mask=shared), index=index, bias=bias) for index in range(3)]
        # the same memory through other objects, as adapters hand it over
        layers.append(selected(square(mask=masks.padding(valid[:])), index=3, bias=bias[:]))
        loaded = again(recording_of(*layers), path)
        with safe_open(path, framework="pt") as file:
            assert sorted(name for name in file.keys() if name.startswith("shared")) == ["shared.0", "shared.1"]  # noqa: SIM118
        assert loaded.layers[0].mask is loaded.layers[2].mask
        assert loaded.layers[3].mask.valid is loaded.layers[0].mask.right.valid
        assert difference(recording_of(*layers), loaded) is None

    def test_a_dense_mask_takes_a_bit_an_entry(self, path):
        layer = Layer(
            index=0,
            name="",
            host="",
            sizes=Sizes(1, 1, 256, 256),
            heads=(0,),
            mask=masks.dense(torch.rand(256, 256) > 0.5),
        )
        Recording((layer,), {}).save(path)
        assert 256 * 256 // 8 < path.stat().st_size < 256 * 256 // 8 + 2000

    def test_transposed_queries(self, path):
        q = torch.randn(2, LENGTH, 6, 5).transpose(1, 2)
        recording = recording_of(selected(replace(square(), q=q)))
        assert difference(recording, again(recording, path)) is None


class TestLaziness:
    def test_opening_reads_no_tensor(self, path, monkeypatch):
        recording_of(selected(square(mask=MASKS["dense"], bias=True))).save(path)
        loaded = load(path)
        layer = loaded.layers[0]
        assert isinstance(layer, StoredLayer)
        assert repr(loaded).startswith("Recording of Toy")
        assert not {"q", "k", "bias", "statistics", "mask"} & vars(layer).keys()
        assert layer.q is layer.q
        assert {"q"} == {"q", "k", "bias", "statistics", "mask"} & vars(layer).keys()

    @pytest.mark.skipif(sys.platform != "linux", reason="measures memory in /proc")
    def test_opening_a_large_file_takes_no_memory(self, path):
        length = 200_000
        q = torch.randn(1, 1, length, 64)
        layer = Layer(
            index=0, name="", host="", sizes=Sizes(1, 1, length, length), heads=(0,), kv_heads=(0,), q=q, k=q.clone(),
            statistics=Measurements(lse=torch.zeros(1, 1, length)),
        )  # fmt: skip
        Recording((layer,), {}).save(path)
        size = path.stat().st_size
        assert size > 100_000_000
        before = resident()
        loaded = load(path)
        assert resident() - before < size // 50
        statistics = loaded.layers[0].statistics
        assert statistics.lse.shape == (1, 1, length)
        assert resident() - before < size // 10
        assert loaded.layers[0].q.shape == q.shape
        # reading would be noticed
        assert resident() - before > size // 4

    def test_a_loaded_layer_is_a_layer(self, path):
        loaded = again(recording_of(selected(square(mask=MASKS["tree"]))), path)
        layer = loaded.layers[0]
        for other in (
            copy.copy(layer),
            copy.deepcopy(layer),
            pickle.loads(pickle.dumps(layer)),
            replace(layer, scale=layer.scale),
        ):
            assert difference(loaded, replace(loaded, layers=(other,))) is None
        assert replace(layer, q=layer.q * 2).q is not layer.q

    def test_changing_a_tensor_leaves_the_file(self, path):
        recording = recording_of()
        loaded = again(recording, path)
        loaded.layers[0].q.zero_()
        assert difference(recording, load(path)) is None


def resident() -> int:
    """Bytes of this process in memory, mapped files counted."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class TestWriting:
    def test_a_failure_leaves_the_old_file(self, path, monkeypatch):
        recording_of().save(path)
        old = path.read_bytes()

        def full(handle):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RecordingError, match=r"cannot write .*run\.safetensors: No space left on device\."):
            recording_of(selected(square(seed=1))).save(path)
        assert path.read_bytes() == old
        assert list(path.parent.iterdir()) == [path]

    def test_an_interruption_leaves_nothing(self, path, monkeypatch):
        def interrupted(tensor):
            raise KeyboardInterrupt

        monkeypatch.setattr(store, "bytes_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            recording_of().save(path)
        assert not list(path.parent.iterdir())

    def test_it_is_on_disk_before_it_has_its_name(self, path, monkeypatch):
        done = []
        sync, rename = os.fsync, Path.replace
        monkeypatch.setattr(os, "fsync", lambda handle: (done.append("sync"), sync(handle)))
        monkeypatch.setattr(Path, "replace", lambda self, target: (done.append("rename"), rename(self, target)))
        recording_of().save(path)
        assert done[:2] == ["sync", "rename"]

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(RecordingError, match=r"cannot write .*missing.x\.safetensors: No such file or directory\."):
            recording_of().save(tmp_path / "missing" / "x.safetensors")

    def test_a_path_that_is_a_folder(self, tmp_path):
        (tmp_path / "folder").mkdir()
        with pytest.raises(RecordingError, match="folder is a folder: name a file in it"):
            recording_of().save(tmp_path / "folder")
        assert [file.name for file in tmp_path.iterdir()] == ["folder"]

    @pytest.mark.parametrize("linked", [False, True])
    def test_a_path_that_is_a_pipe(self, tmp_path, linked):
        os.mkfifo(tmp_path / "pipe")
        if linked:
            (tmp_path / "link").symlink_to("pipe")
        with pytest.raises(RecordingError, match=r"(is|leads to) a named pipe, which a new file would replace"):
            recording_of().save(tmp_path / ("link" if linked else "pipe"))
        assert (tmp_path / "pipe").is_fifo()
        assert len(list(tmp_path.iterdir())) == 1 + linked

    def test_a_link_stays_a_link(self, tmp_path):
        (tmp_path / "link").symlink_to(tmp_path / "target")
        recording_of().save(tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        assert difference(recording_of(), load(tmp_path / "target")) is None

    def test_a_path_as_text(self, path):
        recording_of().save(str(path))
        assert difference(recording_of(), load(str(path))) is None


class TestWhatCannotBeSaved:
    def refused(self, recording: Recording, path: Path, words: str) -> None:
        with pytest.raises(RecordingError, match=f"this recording cannot be saved: .*{words}"):
            recording.save(path)
        assert not list(path.parent.iterdir())

    def test_a_mask_of_an_unknown_kind(self, path):
        self.refused(
            recording_of(selected(square(mask=~Diagonals()), index=4)), path, "layer 4: a mask of kind Diagonals"
        )

    def test_a_mask_nested_too_deep(self, path):
        mask: Mask = masks.causal()
        for _ in range(120):
            mask = masks.And(mask, masks.prefix(3))
        self.refused(recording_of(selected(square(), mask=mask)), path, "nested deeper than 100")

    def test_a_mask_with_too_many_parts(self, path):
        mask: Mask = masks.causal()
        for _ in range(14):
            mask = masks.And(mask, mask)
        self.refused(recording_of(selected(square(), mask=mask)), path, "more than 10000 parts")

    def test_a_number_out_of_bounds(self, path):
        self.refused(recording_of(selected(square(), mask=masks.prefix(1 << 70))), path, "length is out of range")

    def test_nan_in_the_log_sum_exp(self, path):
        call = square()
        call.q[0, 0, 0] = torch.nan
        self.refused(recording_of(selected(call)), path, "layer 0: statistics.lse holds NaN or inf")

    def test_tokens_that_are_no_text(self, path, as_users_run):
        self.refused(Recording((), {"text": [[1, 2]]}), path, r"texts\['text'\]\[0\] is no list of texts")
        self.refused(Recording((), {}, {"when": 3}), path, r"provenance\['when'\] is no text")

    def test_a_header_too_long(self, path, monkeypatch):
        monkeypatch.setattr(store, "_HEADER_LIMIT", 100)
        self.refused(recording_of(), path, "a safetensors header has at most 100")
