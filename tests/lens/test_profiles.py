"""A profile in parts, merged and gone on with; and its file, whole and damaged."""

import json
import sys

import pytest
import torch
from torch import nn

from multihead.errors import ObservationError, RecordingError
from multihead.lens import Profile, observe, profile
from multihead.lens.summaries import KINDS
from tests.lens.hosts import bert, ids, llama, nothing_patched, padded, stack
from tests.lens.test_profile import same_profiles

EVERY = tuple(KINDS)


class TestParts:
    def test_merged_profiles_are_the_profile_of_both(self):
        model = bert()
        data = [{"input_ids": ids(3, 11, seed=n), "attention_mask": padded(11, 3 + n, 5)} for n in range(5)]
        one, two, both = profile(model, data[:2]), profile(model, data[2:]), profile(model, data)
        same_profiles(one.merged(two), both, 1e-12)
        assert one.merged(two).batches == 5
        single = profile(model, data[:1])
        for other in data[1:]:
            single = single.merged(profile(model, [other]))
        same_profiles(single, both, 0)
        with pytest.raises(AssertionError):
            same_profiles(one.merged(one), both)

    def test_profiles_of_something_else_do_not_merge(self):
        x = [torch.randn(1, 5, 14)]
        model = stack(2)
        one = profile(model, x)
        with pytest.raises(
            ObservationError, match=r"profiles of different statistics cannot be merged: entropy, .* lse"
        ):
            one.merged(profile(model, x, statistics=["lse"]))
        with pytest.raises(
            ObservationError, match=r"layer 0 has heads \(0, .*\) in one profile and \(3,\) in the other"
        ):
            one.merged(profile(model, x, heads=[3]))
        with torch.no_grad():
            model[0].out.weight.add_(1)
        with pytest.raises(
            ObservationError, match=r"different models cannot be merged: Sequential with weights [0-9a-f]"
        ):
            one.merged(profile(model, x))

    def test_it_goes_on_where_ctrl_c_stopped_it(self, tmp_path):
        model, path = llama(), tmp_path / "run.safetensors"
        data = [{"input_ids": ids(2, 5 + n, seed=n), "attention_mask": padded(5 + n, 3)} for n in range(6)]
        runs = []
        model.register_forward_hook(lambda *_: runs.append(1))

        def stopping():
            yield from data[:3]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            profile(model, stopping(), into=path)
        kept = Profile.load(path)
        assert (kept.batches, kept.texts, len(runs)) == (3, 6, 3)
        assert nothing_patched()
        gone_on = profile(model, data, into=path)
        assert len(runs) == 6
        same_profiles(gone_on, profile(model, data), 0)
        same_profiles(Profile.load(path), gone_on, 0)
        assert profile(model, data, into=path).batches == 6
        assert len(runs) == 6 + 6

    def test_a_batch_counts_whole_or_not_at_all(self, tmp_path):
        """Ctrl-C, or an error, between two layers."""
        model, path = stack(3), tmp_path / "run.safetensors"
        data = [torch.randn(2, 5, 14), torch.randn(2, 7, 14)]
        calls = []

        def stop(*_):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt

        model[1].register_forward_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            profile(model, data, into=path)
        assert Profile.load(path).layers[0].queries[0] == 10
        made = profile(model, data, into=path)
        assert {tuple(layer.queries.tolist()) for layer in made.layers} == {(24,) * 7}
        assert len(list(tmp_path.iterdir())) == 1

    def test_it_is_saved_now_and_then(self, tmp_path, monkeypatch):
        module = sys.modules["multihead.lens.profile"]
        monkeypatch.setattr(module, "SAVE_EVERY", 0.0)
        path, found = tmp_path / "run.safetensors", []

        def data():
            for number in range(3):
                found.append(Profile.load(path).batches if path.exists() else 0)
                yield torch.randn(1, 3 + number, 14)

        profile(stack(1), data(), into=path)
        assert found == [0, 1, 2]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"data": "other"}, "the first 2 of dataloader are others: give the same data in the same order"),
            ({"data": "short"}, "a profile of 2 batches, and dataloader gives only 1: give the same data"),
            ({"statistics": ["lse"]}, "holds a profile of other statistics: name another file"),
            ({"heads": [1]}, r"holds a profile of heads all, not of \[1\]: name another file, or the same heads"),
            ({"layers": [1]}, r"holds a profile of layers all, not of \[1\]: name another file, or the same layers"),
            ({"model": "other"}, "holds a profile of other weights: name another file"),
            ({"model": "kind"}, "holds a profile of other model: name another file"),
        ],
    )
    def test_it_does_not_go_on_with_something_else(self, tmp_path, change, message):
        path = tmp_path / "run.safetensors"
        torch.manual_seed(1)
        model, data = stack(2), [torch.randn(2, 5, 14) for _ in range(3)]
        profile(model, data[:2], into=path)
        before = path.read_bytes()
        if change.get("model"):
            other = stack(2)
            with torch.no_grad():
                other[1].out.bias.add_(1)
            model = other if change["model"] == "other" else nn.ModuleList(other)[0]
        if change.get("data"):
            data = {"other": [data[0], data[2]], "short": data[:1]}[change["data"]]
        options = {name: value for name, value in change.items() if name not in ("data", "model")}
        with pytest.raises(ObservationError, match=message):
            profile(model, data, into=path, **options)
        assert path.read_bytes() == before


class TestFile:
    @pytest.fixture
    def path(self, tmp_path):
        profile(stack(2), [torch.randn(2, 5, 14)], statistics=EVERY).save(tmp_path / "run.safetensors")
        return tmp_path / "run.safetensors"

    def test_there_and_back(self, path):
        made = profile(stack(2), [torch.randn(2, 5, 14)], into=path.parent / "other.safetensors")
        loaded = Profile.load(path.parent / "other.safetensors")
        same_profiles(loaded, made, 0)
        assert loaded.provenance == made.provenance
        assert loaded.provenance["model"] == "Sequential"
        assert repr(loaded) == "Profile(Sequential: 2 texts in 1 batches, 2 layers)"
        assert repr(loaded.layers[1]) == "LayerProfile 1 (1): 7 heads, 10 queries"

    def test_every_damaged_byte_is_noticed(self, path):
        content = path.read_bytes()
        whole = Profile.load(path)
        for place in range(8, len(content), 97):
            broken = bytearray(content)
            broken[place] ^= 1
            path.write_bytes(broken)
            try:
                found = Profile.load(path)
            except RecordingError:
                continue
            # a bit of padding, or of the name of a format that nobody reads
            same_profiles(found, whole, 0)

    @pytest.mark.parametrize("length", [0, 7, 100, 5000, -1])
    def test_a_file_that_ends_too_soon(self, path, length):
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(RecordingError, match="is no profile: it is not the safetensors file"):
            Profile.load(path)

    def test_a_recording_is_no_profile(self, path):
        model = stack(1)
        with observe(model) as seen:
            model(torch.randn(1, 5, 14))
        seen.recording().save(path)
        with pytest.raises(RecordingError, match="is no profile"):
            Profile.load(path)

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('"schema":"1"', '"schema":"9"', r"has schema '9', and this version of multihead reads 1"),
            ('\\"texts\\": 2', '\\"texts\\": 3', "is damaged: its header does not have the checksum"),
        ],
    )
    def test_a_header_that_was_changed(self, path, old, new, message):
        content = path.read_bytes()
        assert old.encode() in content
        path.write_bytes(content.replace(old.encode(), new.encode()))
        with pytest.raises(RecordingError, match=message):
            Profile.load(path)

    def test_a_well_made_lie(self, path):
        """A header with the right checksum whose numbers do not fit."""
        from multihead.lens import profiles

        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        head = json.loads(content[8 : 8 + length])
        for change, message in (
            ({"layers": [{"index": 0, "name": "0", "host": "sdpa", "heads": [0, 1]}]}, "has shape"),
            ({"statistics": ["beauty"]}, "a statistic 'beauty', which this version does not know"),
            ({"layers": 7}, "is damaged"),
            ({"tensors": {}}, "its list of tensors is not as it was written"),
        ):
            inner = json.dumps(json.loads(head["__metadata__"]["profile"]) | change)
            crc32 = profiles._crc32_of(inner.encode())
            lie = head | {"__metadata__": head["__metadata__"] | {"profile": inner, "crc32": crc32}}
            text = json.dumps(lie).encode()
            path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
            with pytest.raises(RecordingError, match=message):
                Profile.load(path)

    def test_places_that_are_no_files(self, tmp_path):
        model, data = stack(1), [torch.randn(1, 5, 14)]
        with pytest.raises(RecordingError, match="it is a folder"):
            Profile.load(tmp_path)
        with pytest.raises(RecordingError, match=r"cannot read .*: No such file"):
            Profile.load(tmp_path / "none.safetensors")
        with pytest.raises(RecordingError, match="is a folder: name a file in it"):
            profile(model, data, into=tmp_path)
        with pytest.raises(RecordingError, match=r"there is no folder .* to write in"):
            profile(model, data, into=tmp_path / "none" / "run.safetensors")
        with pytest.raises(RecordingError, match=r"cannot write .*: No such file|cannot write"):
            profile(model, data).save(tmp_path / "none" / "run.safetensors")
