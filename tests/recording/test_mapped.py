"""A file's tensors are mapped in windows, so that no file is too large for the memory."""

import json

import pytest
from safetensors import safe_open

import multihead
from multihead import Statistics, masks
from multihead.recording import mapped
from multihead.recording.mapped import MappedFile
from tests.view.made import layer_of, made_call, recording_of


@pytest.fixture
def saved(tmp_path):
    """A recording and its file."""
    layers = (
        layer_of(made_call(queries=41, keys=41, seed=seed, mask=masks.causal()), index=seed, statistics=Statistics())
        for seed in range(3)
    )
    recording = recording_of(*layers)
    recording.save(tmp_path / "run.safetensors")
    return recording, tmp_path / "run.safetensors"


def shifted(path, by: int):
    """The same file with so many empty bytes before its first tensor, which take no room on the disk."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    for name, entry in header.items():
        if name != "__metadata__":
            entry["data_offsets"] = [at + by for at in entry["data_offsets"]]
    header["filler"] = {"dtype": "U8", "shape": [by], "data_offsets": [0, by]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.seek(by, 1)
        file.write(raw[8 + length :])


def same(found, recording) -> None:
    for layer, expected in zip(found.layers, recording.layers, strict=True):
        assert layer.tensors().keys() == expected.tensors().keys()
        for name, tensor in layer.tensors().items():
            assert tensor.equal(expected.tensors()[name]), name


@pytest.mark.parametrize("pages", [1, 3])
def test_tensors_in_windows_across_their_edges_and_larger_ones(saved, monkeypatch, pages):
    recording, path = saved
    monkeypatch.setattr(mapped, "WINDOW", pages * mapped.mmap.ALLOCATIONGRANULARITY)
    file = MappedFile(path)
    asked = []
    monkeypatch.setattr(
        MappedFile, "_mapped", lambda self, *span, do=MappedFile._mapped: asked.append(span) or do(self, *span)
    )
    same(multihead.load(path), recording)
    assert len({start for start, _ in asked}) > 2
    with safe_open(path, framework="pt") as other:
        for name in file.forms:
            assert file.tensor(name).equal(other.get_tensor(name))


def test_a_file_far_larger_than_the_memory(saved):
    recording, path = saved
    shifted(path, 400 << 30)
    with pytest.raises(RuntimeError, match="unable to mmap"), safe_open(path, framework="pt") as whole:
        whole.get_tensor("layers.0.q")
    same(multihead.load(path), recording)


def test_what_is_written_to_a_tensor_stays_in_this_process(saved):
    recording, path = saved
    before = path.read_bytes()
    multihead.load(path).layers[0].q.zero_()
    assert path.read_bytes() == before
    same(multihead.load(path), recording)


def test_sizes_are_known_before_anything_is_read(saved, monkeypatch):
    recording, path = saved
    monkeypatch.setattr(MappedFile, "tensor", lambda *_: pytest.fail("something was read"))
    for layer, expected in zip(multihead.load(path).layers, recording.layers, strict=True):
        for name in ("q", "k", "weights", "lse", "entropy", "blocks"):
            assert layer.shape_of(name) == expected.shape_of(name)
        assert layer.shape_of("q") == tuple(expected.q.shape)
        assert layer.recomputes


def test_an_empty_tensor(tmp_path):
    recording = recording_of(layer_of(made_call(queries=3, keys=3), queries=[]))
    recording.save(tmp_path / "run.safetensors")
    assert multihead.load(tmp_path / "run.safetensors").layers[0].q.shape == recording.layers[0].q.shape
    assert recording.layers[0].q.numel() == 0
