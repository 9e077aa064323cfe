"""All runs of a generation as one recording: its weights are those of one pass over the whole text."""

import json
import re

import pytest
import torch

from multihead import Statistics, load
from multihead.errors import ObservationError
from multihead.lens import observe
from multihead.masks import And, Causal, Padding, SlidingWindow
from multihead.recording import PROMPT_TOKENS
from multihead.view.page import page
from tests.lens.hosts import bart, gpt2, ids, llama, padded, t5

EVERY = Statistics.every(top=3, block=3)
"""The first row and column are the only ones that every run has."""


def mistral(**changes):
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2}
    more = {"intermediate_size": 29, "vocab_size": 53, "max_position_embeddings": 59, "sliding_window": 5}
    torch.manual_seed(1)
    return MistralForCausalLM(MistralConfig(**(sizes | more | {"pad_token_id": 0} | changes))).eval()


def generated(model, prompt, *, options=None, new=7, **how):
    """What was seen of a generation, and all tokens but the last, which is never read."""
    with observe(model, **(options or {"statistics": EVERY})) as seen, torch.no_grad():
        tokens = model.generate(prompt, max_new_tokens=new, min_new_tokens=new, do_sample=False, **how)
    return seen, tokens


def check_same(recording, whole, tolerance=1e-5):
    """Every weight and every statistic of two recordings agree, layer by layer."""
    assert [layer.name for layer in recording.layers] == [layer.name for layer in whole.layers]
    for ours, theirs in zip(recording.layers, whole.layers, strict=True):
        assert ours.sizes == theirs.sizes
        for item in range(ours.sizes.batch):
            rows = list(range(ours.sizes.queries))
            first, second = (made.rows(ours.index, rows, item=item) for made in (recording, whole))
            torch.testing.assert_close(first, second, rtol=0, atol=tolerance)
        found, wanted = ours.statistics.named(), theirs.statistics.named()
        assert found.keys() == wanted.keys()
        for name, tensor in found.items():
            if name != "top_keys":
                torch.testing.assert_close(tensor, wanted[name], rtol=tolerance, atol=10 * tolerance, msg=name)


def test_the_comparison_notices():
    seen, tokens = generated(llama(), ids(2, 5))
    recording = seen.generation()
    check_same(recording, recording)
    other, _ = generated(llama(), tokens[:, 1:6])
    with pytest.raises(AssertionError):
        check_same(recording, other.generation())


CACHES = [
    pytest.param(llama, {}, Causal, id="llama"),
    pytest.param(llama, {"cache_implementation": "static"}, Causal, id="llama, static"),
    pytest.param(gpt2, {}, Causal, id="gpt2"),
    pytest.param(mistral, {}, SlidingWindow, id="mistral"),
    pytest.param(mistral, {"cache_implementation": "static"}, SlidingWindow, id="mistral, static"),
]


class TestDecoders:
    @pytest.mark.parametrize(("make", "how", "kind"), CACHES)
    @pytest.mark.parametrize("length", [2, 11])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_whole_is_one_pass(self, make, how, kind, length, dtype):
        model = make().to(dtype)
        seen, tokens = generated(model, ids(2, length), **how)
        assert len(seen.runs) == 7
        with observe(model, statistics=EVERY) as once, torch.no_grad():
            model(tokens[:, :-1])
        check_same(seen.generation(), once.recording(), 1e-5 if dtype == torch.float32 else 1e-9)
        assert {type(layer.mask) for layer in seen.generation().layers} == {kind}
        once.check()

    @pytest.mark.parametrize(("make", "how"), [case.values[:2] for case in CACHES])
    def test_prompts_of_different_lengths(self, make, how):
        """Padded before: at real queries the weights are those of each text alone."""
        model, lengths = make().double(), (7, 4)
        prompt, mask = ids(2, 7), padded(7, 4, left=True)
        seen, tokens = generated(model, prompt, attention_mask=mask, **how)
        recording = seen.generation()
        for item, length in enumerate(lengths):
            with observe(model) as once, torch.no_grad():
                model(tokens[item : item + 1, 7 - length : -1])
            alone = once.recording()
            for layer in alone.layers:
                rows = list(range(7 - length, 13))
                found = recording.rows(layer.index, rows, item=item)
                assert not found[..., : 7 - length].any()
                wanted = alone.rows(layer.index, list(range(length + 6)))
                torch.testing.assert_close(found[..., 7 - length :], wanted, rtol=0, atol=1e-5)

    def test_the_mask_stays_small(self):
        seen, _ = generated(llama(), ids(2, 7), attention_mask=padded(7, 4, left=True))
        mask = seen.generation().layers[0].mask
        assert isinstance(mask, And)
        assert {type(mask.left), type(mask.right)} == {Causal, Padding}

    def test_tokens(self, tmp_path):
        model = llama()
        seen, tokens = generated(model, ids(1, 5), new=3)
        words = [f"t{token}" for token in tokens[0].tolist()]
        recording = seen.generation(words)
        assert recording.texts["text"] == (tuple(words[:-1]),) or list(map(list, recording.texts["text"])) == [
            words[:-1]
        ]
        assert seen.generation([words]).texts == recording.texts
        assert seen.generation(words[:-1]).texts == recording.texts
        assert recording.provenance["runs"] == "3"
        assert recording.provenance[PROMPT_TOKENS] == "5"
        texts = json.loads(re.search(r'id="multihead-document">(.*?)</script>', page(recording))[1])["texts"]
        assert [text["prompt"] for text in texts] == [5]
        recording.save(tmp_path / "run.safetensors")
        check_same(load(tmp_path / "run.safetensors"), recording, 1e-7)
        with pytest.raises(ObservationError, match="tokens has 4 tokens in sequence 0, but layer 0"):
            seen.generation(words[:4])

    def test_one_new_token_and_chosen_heads(self):
        model = llama()
        seen, tokens = generated(model, ids(2, 5), new=1)
        assert [layer.sizes.queries for layer in seen.generation().layers] == [5, 5]
        seen, tokens = generated(model, ids(2, 5), options={"heads": {1: [5, 0, 3]}})
        with observe(model, heads={1: [5, 0, 3]}) as once:
            model(tokens[:, :-1])
        check_same(seen.generation(), once.recording())
        assert [layer.heads for layer in seen.generation().layers] == [(5, 0, 3)]

    def test_a_prompt_in_pieces(self):
        """The cache of transformers, driven by hand."""
        from transformers import DynamicCache

        model, tokens = llama().double(), ids(2, 13)
        with observe(model, statistics=EVERY) as seen, torch.no_grad():
            cache = DynamicCache(config=model.config)
            for piece in tokens.split([3, 5, 1, 4], 1):
                model(piece, past_key_values=cache)
        with observe(model, statistics=EVERY) as once, torch.no_grad():
            model(tokens)
        check_same(seen.generation(), once.recording(), 1e-9)


class TestEncoderDecoders:
    @pytest.mark.parametrize("make", [t5, bart])
    @pytest.mark.parametrize("how", [{}, {"cache_implementation": "static"}])
    def test_encoder_decoder_and_between(self, make, how):
        model = make().double()
        changes = {"forced_eos_token_id": None, "num_beams": 1, "early_stopping": False}
        source, mask = ids(2, 11), padded(11, 6)
        statistics = Statistics.every(top=3, block=3)
        seen, tokens = generated(
            model, source, options={"statistics": statistics}, attention_mask=mask, **changes, **how
        )
        with observe(model, statistics=statistics) as once, torch.no_grad():
            model(input_ids=source, attention_mask=mask, decoder_input_ids=tokens[:, :-1])
        recording, whole = seen.generation(), once.recording()
        check_same(recording, whole, 1e-9)
        sizes = {(layer.sizes.queries, layer.sizes.keys) for layer in recording.layers}
        assert sizes == {(11, 11), (7, 7), (7, 11)}
        words = [[f"t{token}" for token in row] for row in tokens.tolist()]
        named = seen.generation(words, source=[["s"] * 11] * 2)
        assert {(layer.query_text, layer.key_text) for layer in named.layers} == {
            ("source", "source"),
            ("target", "target"),
            ("target", "source"),
        }


class TestOurs:
    @pytest.mark.parametrize("padding", [False, True])
    def test_decoder(self, padding):
        from multihead.models import Config, Decoder, generate

        torch.manual_seed(2)
        config = Config(vocab_size=53, embed_dim=12, num_heads=3, decoder_layers=2)
        model, prompt = Decoder(config).double().eval(), ids(2, 5)
        valid = padded(5, 3, left=True).bool() if padding else None
        with observe(model, statistics=EVERY) as seen:
            written = generate(model, prompt, max_new_tokens=7, valid=valid).tokens
        tokens = torch.cat([prompt, written[:, :-1]], 1)
        if valid is not None:
            valid = torch.cat([valid, torch.ones(2, 6, dtype=torch.bool)], 1)
        with observe(model, statistics=EVERY) as once, torch.no_grad():
            model(tokens, valid=valid)
        recording, whole = seen.generation(), once.recording()
        real = torch.ones(2, 11, dtype=torch.bool) if valid is None else valid
        for layer in whole.layers:
            for item in range(2):
                rows = real[item].nonzero()[:, 0].tolist()
                first, second = (made.rows(layer.index, rows, item=item) for made in (recording, whole))
                torch.testing.assert_close(first, second, rtol=0, atol=1e-9)

    def test_encoder_decoder(self):
        from multihead.models import Config, EncoderDecoder, generate

        torch.manual_seed(2)
        config = Config(vocab_size=53, embed_dim=12, num_heads=3, encoder_layers=1, decoder_layers=2)
        model, source, begin = EncoderDecoder(config).double().eval(), ids(2, 7), torch.ones(2, 1, dtype=torch.int64)
        with observe(model) as seen:
            written = generate(model, begin, source=source, max_new_tokens=5).tokens
        with observe(model) as once, torch.no_grad():
            model(source, torch.cat([begin, written[:, :-1]], 1))
        check_same(seen.generation(), once.recording(), 1e-9)


class TestRefusals:
    @pytest.mark.parametrize("make", [llama, gpt2])
    def test_beams_that_change_places(self, make):
        model = make()
        torch.manual_seed(4)
        with torch.no_grad():
            model.lm_head.weight.copy_(torch.randn_like(model.lm_head.weight))
        seen, _ = generated(model, ids(2, 5), new=9, num_beams=4)
        with pytest.raises(ObservationError, match="sequences changed places, as in beam search, or tokens were taken"):
            seen.generation()

    @pytest.mark.parametrize("make", [t5, bart])
    def test_beams_over_one_source(self, make):
        model = make()
        seen, _ = generated(model, ids(2, 5), num_beams=3)
        with pytest.raises(
            ObservationError, match="layer 0 saw 2 sequences and layer 2 6, as in beam search: generate"
        ):
            seen.generation()

    def test_tokens_that_were_taken_back(self):
        from transformers import DynamicCache

        model = llama()
        with observe(model) as seen, torch.no_grad():
            cache = DynamicCache(config=model.config)
            model(ids(1, 7), past_key_values=cache)
            cache.crop(-2)
            model(ids(1, 3, seed=9), past_key_values=cache)
            model(ids(1, 1, seed=9), past_key_values=cache)
        with pytest.raises(
            ObservationError, match=r"layer 0 \(model.layers.0.self_attn\) has other keys in run 1 than"
        ):
            seen.generation()

    def test_another_text(self):
        model = llama()
        with observe(model) as seen:
            for _ in range(2):
                model.generate(ids(1, 5), max_new_tokens=3, do_sample=False)
        with pytest.raises(
            ObservationError, match=r"reads a text anew in run 3: observe one generate\(\) in each with"
        ):
            seen.generation()
        seen, _ = generated(model, ids(1, 5), use_cache=False)
        with pytest.raises(ObservationError, match=r"without one, recording\(\) of the last run has the whole text"):
            seen.generation()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"qk": False}, "holds no queries and keys, of which its runs are made one: observe with qk=True"),
            ({"queries": [0]}, "holds some queries of each run only: observe without queries="),
        ],
    )
    def test_what_was_not_kept(self, options, message):
        seen, _ = generated(llama(), ids(1, 5), options=options)
        with pytest.raises(ObservationError, match=message):
            seen.generation()

    def test_nothing(self):
        with observe(llama()) as seen:
            pass
        with pytest.raises(ObservationError, match="nothing was seen"):
            seen.generation()

    def test_rows_that_no_run_has(self):
        """Places in the text, which the statistics name, show only over the whole."""
        model = llama()
        seen, _ = generated(model, ids(1, 9), options={"statistics": Statistics(columns=(0,))}, new=3)
        assert seen.generation().layers[0].statistics.columns.shape == (1, 6, 11, 1)
        chosen = seen.generation(statistics=Statistics(rows=(10, 3))).layers[0].statistics
        assert chosen.rows.shape == (1, 6, 2, 11)
        assert chosen.columns is None
        with pytest.raises(
            ValueError, match=r"layer 0 \(model.layers.0.self_attn\): rows 11 out of range: valid are 0 to"
        ):
            seen.generation(statistics=Statistics(rows=(11,)))
