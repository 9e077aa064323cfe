"""A model in a folder: the same after loading, and refused with one sentence where it is damaged or none."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from torch import nn

from multihead.errors import SourceError
from multihead.models import Config, Decoder, Encoder, EncoderDecoder
from multihead.models.model import Model
from tests.models.made import POSITIONS, config, decoder, encoder_decoder, randomised, tokens

SOURCE, TARGET = tokens(2, 11, seed=1), tokens(2, 7, seed=2)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("position", POSITIONS)
def test_the_same_after_loading(tmp_path, position, tied):
    model = encoder_decoder(position=position, tied_embeddings=tied, qk_norm=True, sinks=True)
    model.save(tmp_path)
    loaded = EncoderDecoder.load(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded(SOURCE, TARGET), model(SOURCE, TARGET))
    assert not any(module.training for module in loaded.modules())
    assert {tensor.device.type for tensor in [*loaded.parameters(), *loaded.buffers()]} == {"cpu"}


def test_models_of_every_kind(tmp_path):
    for kind, inputs in ((Encoder, (SOURCE,)), (Decoder, (TARGET,)), (EncoderDecoder, (SOURCE, TARGET))):
        model, folder = randomised(kind(config())), tmp_path / kind.__name__
        model.save(folder)
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
        for loaded in (kind.load(folder), Model.load(folder)):
            assert type(loaded) is kind
            assert torch.equal(loaded(*inputs), model(*inputs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_dtype_is_kept_and_frequencies_are_exact(tmp_path, dtype):
    model = decoder(position="rotary").to(dtype)
    model.save(tmp_path)
    loaded = Decoder.load(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert torch.equal(loaded(TARGET), model(TARGET))


def test_tables_that_are_one_are_stored_once_and_stay_one(tmp_path):
    model = encoder_decoder(position="t5", tied_embeddings=True)
    model.save(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert "encoder.embedding.tokens.weight" in stored
    assert "decoder.embedding.tokens.weight" not in stored
    assert len([name for name in stored if "position" in name]) == 2, "a table for the encoder and one for the decoder"
    loaded = EncoderDecoder.load(tmp_path)
    assert loaded.encoder.embedding.tokens.weight is loaded.decoder.embedding.tokens.weight
    assert len(list(loaded.parameters())) == len(stored)
    # what is one learns as one
    loaded.train()(SOURCE, TARGET).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_saving_over_a_model_leaves_the_new_one_alone(tmp_path):
    decoder(seed=1).save(tmp_path)
    model = decoder(seed=2, position="rotary")
    model.save(tmp_path)
    assert torch.equal(Decoder.load(tmp_path)(TARGET), model(TARGET))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_loaded_model_does_not_change_with_its_file(tmp_path):
    model = decoder()
    model.save(tmp_path)
    loaded = Decoder.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert torch.equal(loaded(TARGET), model(TARGET))


def test_a_parameter_that_lies_otherwise_in_memory(tmp_path):
    model = decoder()
    model.output.weight.data = model.output.weight.detach().T.contiguous().T
    assert not model.output.weight.is_contiguous()
    model.save(tmp_path)
    assert torch.equal(Decoder.load(tmp_path).output.weight, model.output.weight)


def test_half_of_a_model_is_not_saved_as_one(tmp_path):
    model = encoder_decoder()
    with pytest.raises(ValueError, match="this decoder is half of an encoder-decoder: save the whole model"):
        model.decoder.save(tmp_path)
    model.encoder.save(tmp_path)
    assert torch.equal(Encoder.load(tmp_path)(SOURCE), model.encoder(SOURCE))


def test_a_kind_of_ones_own(tmp_path):
    class Tagger(Encoder):
        def __init__(self, config):
            super().__init__(config)
            self.tags = nn.Linear(config.embed_dim, 3)

    model = randomised(Tagger(config()))
    model.save(tmp_path)
    loaded = Tagger.load(tmp_path)
    assert torch.equal(loaded.tags.weight, model.tags.weight)


def refused(folder: Path, words: str, kind: type[Model] = Decoder) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        kind.load(folder)
    message = str(caught.value)
    assert message.startswith(f"{str(folder)!r} holds no model that can be loaded: ")
    assert "\n" not in message
    assert len(message) < 600


@pytest.fixture
def saved(tmp_path):
    decoder(decoder_layers=2).save(tmp_path)
    return tmp_path


def edit_config(folder: Path, change) -> None:
    """Change config.json, and the copy of it in the weights, so that only the change is wrong."""
    values = json.loads((folder / "config.json").read_text())
    change(values)
    text = json.dumps(values)
    (folder / "config.json").write_text(text)
    edit_metadata(folder, lambda metadata: metadata.update(config=text))


def edit_metadata(folder: Path, change) -> None:
    rewritten(folder, lambda tensors, metadata: change(metadata))


def edit_tensors(folder: Path, change) -> None:
    rewritten(folder, lambda tensors, metadata: change(tensors))


def rewritten(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    metadata = json.loads(raw[8 : 8 + length])["__metadata__"]
    tensors = load(raw)
    change(tensors, metadata)
    save_file(tensors, path, metadata)


class TestWhatIsNoModel:
    def test_no_folder(self, tmp_path):
        refused(tmp_path / "none", "there is no config.json")

    def test_an_empty_folder(self, tmp_path):
        refused(tmp_path, "there is no config.json")

    def test_no_weights(self, saved):
        (saved / "model.safetensors").unlink()
        refused(saved, "there is no model.safetensors")

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_a_pipe_is_not_waited_for(self, saved, name):
        (saved / name).unlink()
        os.mkfifo(saved / name)
        refused(saved, f"there is no {name}")

    @pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"model_type": "bert"}', "[" * 100_000])
    def test_another_config(self, saved, text):
        (saved / "config.json").write_text(text)
        refused(saved, "config.json describes no model of this package")

    def test_a_config_that_is_no_text(self, saved):
        (saved / "config.json").write_bytes(b"\xff\xfe\x00")
        refused(saved, "config.json cannot be read")

    def test_a_huge_config(self, saved):
        (saved / "config.json").write_text(" " * ((1 << 20) + 1))
        refused(saved, "config.json has more than 1,048,576 bytes")
        (saved / "config.json").write_text(" " * (1 << 20))
        refused(saved, "config.json describes no model of this package")

    def test_a_newer_one(self, saved):
        edit_config(saved, lambda values: values.update(version=2))
        refused(saved, "config.json has version 2, expected 1: a newer multihead wrote it")

    def test_another_kind(self, saved):
        refused(saved, "it holds a model 'Decoder', expected 'Encoder'", kind=Encoder)
        edit_config(saved, lambda values: values.update(model="os.system"))
        refused(saved, "it holds a model 'os.system', expected 'Decoder', 'Encoder' or 'EncoderDecoder'", kind=Model)

    def test_a_config_that_cannot_be(self, saved):
        edit_config(saved, lambda values: values["config"].update(num_heads=5))
        refused(saved, "its configuration is wrong: .*num_heads")
        edit_config(saved, lambda values: values.update(config=None))
        refused(saved, "its configuration is wrong: a configuration is a JSON object")

    def test_a_config_of_other_weights(self, saved, tmp_path_factory):
        other = tmp_path_factory.mktemp("other")
        decoder(activation="gelu", decoder_layers=2).save(other)
        (other / "config.json").replace(saved / "config.json")
        refused(saved, "config.json is not the one that model.safetensors was written with")

    def test_weights_of_something_else(self, saved):
        save_file({"weight": torch.zeros(3)}, saved / "model.safetensors", {"format": "pt"})
        refused(saved, "model.safetensors is a safetensors file of something else")
        save_file({"weight": torch.zeros(3)}, saved / "model.safetensors")
        refused(saved, "model.safetensors is a safetensors file of something else")

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04", bytes(100), b"\xff" * 64, b"\x80\x04\x95"])
    def test_weights_that_are_no_safetensors(self, saved, content):
        (saved / "model.safetensors").write_bytes(content)
        refused(saved, "model.safetensors cannot be read")

    def test_blocks_that_nobody_wrote(self, saved):
        """Nothing is built for hours because of a number in a file."""
        edit_config(saved, lambda values: values["config"].update(decoder_layers=10**12))
        refused(saved, "decoder_layers is 1000000000000, expected 0 to 10000 blocks")

    def test_tables_larger_than_any_memory(self, saved):
        edit_config(saved, lambda values: values["config"].update(vocab_size=2**30, feedforward_dim=2**30))
        refused(saved, r"has shape \(.*\), expected \(.*1073741824.*\) by its configuration")


class TestDamage:
    def test_cut_off(self, saved):
        path = saved / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-5])
        refused(saved, "model.safetensors cannot be read")

    def test_a_bit_of_a_weight(self, saved):
        path = saved / "model.safetensors"
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)
        refused(saved, "is damaged: its checksum is another")

    def test_a_missing_weight(self, saved):
        edit_tensors(saved, lambda tensors: tensors.pop("blocks.1.attention.q_proj.weight"))
        refused(saved, "model.safetensors lacks blocks.1.attention.q_proj.weight")

    def test_many_missing_weights(self, saved):
        edit_config(saved, lambda values: values["config"].update(decoder_layers=9))
        refused(saved, r"model.safetensors lacks blocks.2.attention.k_proj.bias, .* and \d+ more")

    def test_a_weight_too_many(self, saved):
        edit_tensors(saved, lambda tensors: tensors.update(more=torch.zeros(2)))
        refused(saved, "model.safetensors has more, which the model has no place for")

    def test_a_weight_of_another_shape(self, saved):
        edit_tensors(saved, lambda tensors: tensors.update({"output.weight": torch.zeros(24, 13)}))
        refused(saved, r"output.weight has shape \(24, 13\), expected \(13, 24\) by its configuration")

    def test_a_weight_of_another_type(self, saved):
        edit_tensors(saved, lambda tensors: tensors.update({"output.weight": torch.zeros(13, 24).int()}))
        refused(saved, "output.weight has dtype torch.int32, expected a floating-point type")

    @pytest.mark.parametrize("text", ["", "[]", "{}", "null"])
    def test_no_checksums(self, saved, text):
        edit_metadata(saved, lambda metadata: metadata.update(checksums=text))
        refused(saved, "is damaged: its checksum is another")


def test_what_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("here is a file")
    with pytest.raises(OSError, match="file"):
        decoder().save(tmp_path / "file")
    (tmp_path / "model" / "config.json").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match="is a folder: name a file in it"):
        decoder().save(tmp_path / "model")
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".part"]


def test_the_config_is_for_people_too(saved):
    values = json.loads((saved / "config.json").read_text())
    assert values["format"] == "multihead-model"
    assert values["model"] == "Decoder"
    assert Config.from_values(values["config"]) == config(decoder_layers=2)
