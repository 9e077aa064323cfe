"""The models against torch's own blocks with the same weights, their parts against the formulas, and their refusals."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import multihead as mh
from multihead.models import Decoder, Encoder, EncoderDecoder, FeedForward
from tests.accuracy import check
from tests.models.made import POSITIONS, VOCABULARY, config, decoder, encoder_decoder, lengths, randomised, tokens

SOURCE, TARGET = tokens(2, 11, seed=1), tokens(2, 7, seed=2)


def torchs(model: EncoderDecoder, dtype: torch.dtype):
    """The same model of torch's blocks, in another precision, as a function of source, target and source_valid."""
    model = copy.deepcopy(model).to(dtype)
    options = config_of(model)
    encoder = nn.ModuleList(nn.TransformerEncoderLayer(**options) for _ in model.encoder.blocks).to(dtype).eval()
    decoder = nn.ModuleList(nn.TransformerDecoderLayer(**options) for _ in model.decoder.blocks).to(dtype).eval()
    for theirs, ours in [*zip(encoder, model.encoder.blocks, strict=True)]:
        copy_block(theirs, ours)
    for theirs, ours in [*zip(decoder, model.decoder.blocks, strict=True)]:
        copy_block(theirs, ours)

    def run(source, target, valid):
        x = model.encoder.embedding(source)
        for block in encoder:
            x = block(x, src_key_padding_mask=~valid)
        x = model.encoder.norm(x)
        y = model.decoder.embedding(target)
        hidden = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        for block in decoder:
            y = block(y, x, tgt_mask=hidden, memory_key_padding_mask=~valid)
        return model.decoder.logits(model.decoder.norm(y))

    return run


def config_of(model):
    c = model.config
    return {
        "d_model": c.embed_dim,
        "nhead": c.num_heads,
        "dim_feedforward": c.feedforward_dim,
        "dropout": 0.0,
        "activation": c.activation,
        "norm_first": c.norm_first,
        "batch_first": True,
    }


def copy_block(theirs, ours):
    pairs = [("self_attn", "attention", "norm1", "attention_norm")]
    if ours.cross_attention is None:
        last = "norm2"
    else:
        pairs.append(("multihead_attn", "cross_attention", "norm2", "cross_norm"))
        last = "norm3"
    with torch.no_grad():
        for their_attention, our_attention, their_norm, our_norm in pairs:
            attention, mine = getattr(theirs, their_attention), getattr(ours, our_attention)
            projections = (mine.q_proj, mine.k_proj, mine.v_proj)
            attention.in_proj_weight.copy_(torch.cat([projection.weight for projection in projections]))
            attention.in_proj_bias.copy_(torch.cat([projection.bias for projection in projections]))
            attention.out_proj.load_state_dict(mine.out_proj.state_dict())
            getattr(theirs, their_norm).load_state_dict(getattr(ours, our_norm).state_dict())
        theirs.linear1.load_state_dict(ours.feedforward.up_proj.state_dict())
        theirs.linear2.load_state_dict(ours.feedforward.down_proj.state_dict())
        getattr(theirs, last).load_state_dict(ours.feedforward_norm.state_dict())


@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_an_encoder_decoder_is_torchs_with_the_same_weights(norm_first, activation):
    model = encoder_decoder(norm_first=norm_first, activation=activation, num_kv_heads=None)
    valid = lengths(11, 11, 5)
    found = model(SOURCE, TARGET, source_valid=valid)
    exact, plain = (torchs(model, dtype)(SOURCE, TARGET, valid) for dtype in (torch.float64, torch.float32))
    check(found, exact, plain)


@pytest.mark.parametrize("make", [Encoder, Decoder])
def test_a_norm_stands_last(make):
    """After all blocks where each starts with one, else in the last block: either way features start normalised."""
    for norm_first in (False, True):
        model = make(config(norm_first=norm_first))
        features = model(SOURCE) if make is Encoder else model.hidden(SOURCE)
        torch.testing.assert_close(features.mean(-1), torch.zeros(2, 11))
        torch.testing.assert_close(features.std(-1, correction=0), torch.ones(2, 11), atol=1e-3, rtol=0.0)
        assert isinstance(model.norm, nn.LayerNorm) == norm_first


@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])
def test_feedforward_is_the_formula(activation):
    layer = randomised(FeedForward(config(activation=activation)))
    x = torch.randn(2, 5, 24)

    def formula(dtype):
        part, x_ = copy.deepcopy(layer).to(dtype), x.to(dtype)
        up = x_ @ part.up_proj.weight.T + part.up_proj.bias
        if activation == "swiglu":
            gate = x_ @ part.gate_proj.weight.T + part.gate_proj.bias
            up = gate / (1 + torch.exp(-gate)) * up
        elif activation == "relu":
            up = up.clamp_min(0)
        else:
            up = up * 0.5 * (1 + torch.erf(up / 2**0.5))
        return up @ part.down_proj.weight.T + part.down_proj.bias

    check(layer(x), formula(torch.float64), formula(torch.float32))


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
def test_every_position_gives_an_order(position, norm_first):
    """Swapping two source tokens changes what the others become, unless nothing says where tokens stand."""
    encoder = randomised(Encoder(config(position=position, norm_first=norm_first)))
    swapped = SOURCE.clone()
    swapped[:, [2, 5]] = SOURCE[:, [5, 2]]
    assert not torch.equal(SOURCE, swapped)
    found, other = encoder(SOURCE)[:, -1], encoder(swapped)[:, -1]
    assert torch.allclose(found, other, atol=1e-5) == (position == "none")


@pytest.mark.parametrize("position", POSITIONS)
def test_a_token_cannot_depend_on_a_later_one(position):
    model = decoder(position=position)
    changed = TARGET.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % VOCABULARY
    before, after = model(TARGET), model(changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("left", [False, True], ids=["after", "before"])
def test_padding_changes_nothing(position, left):
    encoder, model = randomised(Encoder(config(position=position))), decoder(position=position)
    valid = lengths(11, 11, 5, left=left)
    real = SOURCE[1, -5:] if left else SOURCE[1, :5]
    place = slice(-5, None) if left else slice(5)
    for padded, alone, exact in (
        (encoder(SOURCE, valid=valid), encoder(real[None]), encoder.double()(real[None])),
        (model(SOURCE, valid=valid), model(real[None]), model.double()(real[None])),
    ):
        check(padded[1, place], exact[0], alone[0], position)


def test_options_reach_every_attention_and_every_norm():
    options = {"qk_norm": True, "output_gate": True, "softcap": 5.0, "sinks": True, "attention_dropout": 0.25}
    model = EncoderDecoder(config(norm="rms", norm_eps=1e-3, bias=False, head_dim=10, **options))
    attentions = [module for module in model.modules() if isinstance(module, mh.MultiHeadAttention)]
    assert len(attentions) == 2 + 3 + 3
    for attention in attentions:
        assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == (6, 3, 10)
        assert (attention.softcap, attention.dropout) == (5.0, 0.25)
        assert attention.sinks is not None
        assert attention.gate_proj is not None
        assert attention.q_norm.eps == 1e-3
    norms = [module for module in model.modules() if isinstance(module, nn.RMSNorm)]
    assert len(norms) == 2 * 2 + 3 * 3 + 2 * 8
    assert {norm.eps for norm in norms} == {1e-3}
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]
    assert model(SOURCE, TARGET).isfinite().all()


def test_options_reach_every_layer_norm():
    model = EncoderDecoder(config(norm_first=True, norm_eps=1e-3, bias=False))
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 2 * 2 + 3 * 3 + 2
    assert {(norm.eps, norm.bias) for norm in norms} == {(1e-3, None)}


def test_options_reach_rotary_positions():
    position = Decoder(config(position="rotary", head_dim=10, rotary_base=100.0)).blocks[0].attention.position
    assert (position.head_dim, position.base) == (10, 100.0)


def test_positions_stand_in_self_attention_only():
    model = EncoderDecoder(config(position="t5"))
    assert all(block.cross_attention.position is None for block in model.decoder.blocks)
    assert len({block.attention.position for block in model.decoder.blocks}) == 1, "a stack shares its table"
    assert model.encoder.blocks[0].attention.position.bidirectional
    assert not model.decoder.blocks[0].attention.position.bidirectional


@pytest.mark.parametrize(("target", "tied"), [(None, True), (None, False), (17, True), (17, False)])
def test_tables_that_are_one(target, tied):
    model = EncoderDecoder(config(target_vocab_size=target, tied_embeddings=tied))
    assert (model.encoder.embedding.tokens is model.decoder.embedding.tokens) == (target is None)
    assert (model.decoder.output is None) == tied
    logits = model(SOURCE, TARGET)
    assert logits.shape == (2, 7, target or VOCABULARY)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_embeddings_are_scaled_and_start_with_unit_variance():
    model = Encoder(config(embed_dim=1000, num_heads=5, num_kv_heads=None, vocab_size=211, position="none"))
    every = torch.arange(211)[None]
    assert 0.97 < model.embedding(every).std() < 1.03
    plain = Encoder(config(scale_embeddings=False, position="none"))
    assert torch.equal(plain.embedding(SOURCE), F.embedding(SOURCE, plain.embedding.tokens.weight))


@pytest.mark.parametrize("position", ["sinusoidal", "learned"])
def test_places_are_added_to_embeddings_that_are_scaled(position):
    embedding = Encoder(config(position=position)).embedding
    plain = F.embedding(SOURCE, embedding.tokens.weight)
    torch.testing.assert_close(embedding(SOURCE), 24**0.5 * plain + embedding.places(torch.zeros_like(plain)))


def test_tied_logits_are_inner_products_with_the_embeddings():
    model = decoder(tied_embeddings=True)
    torch.testing.assert_close(model(TARGET), model.hidden(TARGET) @ model.embedding.tokens.weight.T)


def test_the_vocabulary_of_a_target_is_none_of_a_decoder_alone():
    model = Decoder(config(target_vocab_size=17))
    assert model(TARGET).shape == (2, 7, VOCABULARY)


def test_linear_layers_start_as_xaviers():
    """Glorot & Bengio 2010, equation 16; biases of 0."""
    layers = [module for module in EncoderDecoder(config()).modules() if isinstance(module, nn.Linear)]
    for layer in layers:
        bound = (6 / sum(layer.weight.shape)) ** 0.5
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert layer.bias is None or not layer.bias.any()
    assert len(layers) == 2 * 6 + 3 * 10 + 1


@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
def test_dropout_falls_on_what_the_parts_give_and_on_the_embeddings(norm_first):
    model = randomised(EncoderDecoder(config(norm_first=norm_first, dropout=1 - 1e-9))).train()
    assert not model.encoder.embedding(SOURCE).any()
    assert not model.decoder.embedding(TARGET).any()
    block, x = model.decoder.blocks[0], torch.randn(2, 7, 24)
    expected = x if norm_first else block.feedforward_norm(block.cross_norm(block.attention_norm(x)))
    assert torch.equal(block(x, context=torch.randn(2, 11, 24)), expected)


def test_dropout_works_while_training_only():
    model = EncoderDecoder(config(dropout=0.5))
    assert not torch.equal(model(SOURCE, TARGET), model(SOURCE, TARGET))
    model.eval()
    assert torch.equal(model(SOURCE, TARGET), model(SOURCE, TARGET))


def test_it_learns():
    """An encoder-decoder comes to copy two texts backwards, which no model of one place could."""
    model = EncoderDecoder(config(norm_first=True))
    source = tokens(2, 5, seed=3)
    target = torch.cat([torch.zeros(2, 1, dtype=torch.int64), source.flip(1)], 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = F.cross_entropy(model(source, target[:, :-1]).flatten(0, 1), target[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(model(source, target[:, :-1]).argmax(-1), target[:, 1:])


def test_the_lens_sees_the_three_places():
    model = encoder_decoder(num_kv_heads=None)
    with mh.observe(model) as seen, torch.no_grad():
        model(SOURCE, TARGET)
    assert seen.check().passed
    names = [layer.name for layer in seen.layers]
    assert names[:2] == ["encoder.blocks.0.attention", "encoder.blocks.1.attention"]
    assert names[2:4] == ["decoder.blocks.0.attention", "decoder.blocks.0.cross_attention"]
    assert {layer.host for layer in seen.layers} == {"multihead"}
    recording = seen.recording()
    assert [(layer.query_text, layer.key_text) for layer in recording][1:4] == [
        ("source", "source"),
        ("target", "target"),
        ("target", "source"),
    ]


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Encoder(config(encoder_layers=0)), ValueError, "encoder_layers is 0, expected a positive number"),
        (lambda: Decoder(config(decoder_layers=0)), ValueError, "decoder_layers is 0, expected a positive number"),
        (lambda: decoder()(tokens(2, 3) + 11), ValueError, "tokens holds token 23, expected 0 to 12: the vocabulary"),
        (lambda: decoder()(tokens(2, 3) - 20), ValueError, "tokens holds token -19, expected 0 to 12"),
        (lambda: decoder()(torch.tensor([[3, 13]])), ValueError, "tokens holds token 13, expected 0 to 12"),
        (lambda: decoder()(torch.tensor([[3, -1]])), ValueError, "tokens holds token -1, expected 0 to 12"),
        (lambda: decoder()(tokens(3)), ValueError, r"tokens has shape \(3\), expected \(batch, tokens\)"),
        (lambda: decoder()(torch.zeros(2, 3)), TypeError, "tokens has dtype torch.float32, expected integers"),
        (lambda: decoder()(tokens(2, 3) > 5), TypeError, "tokens has dtype torch.bool, expected integers"),
        (lambda: decoder()(tokens(2, 3), valid=tokens(2, 3)), TypeError, "valid has dtype torch.int64, expected"),
        (
            lambda: decoder()(tokens(2, 3), valid=lengths(4, 1, 2)),
            ValueError,
            r"valid has shape \(2, 4\), expected that of its tokens, \(2, 3\)",
        ),
        (lambda: decoder()(TARGET, torch.zeros(2, 3, 24)), ValueError, "this decoder has no cross-attention"),
        (lambda: decoder()(TARGET, context_valid=lengths(3, 1, 2)), ValueError, "this decoder has no cross-attention"),
        (lambda: encoder_decoder().decoder(TARGET), ValueError, "context is None: this decoder attends to what"),
        (
            lambda: encoder_decoder().decoder(TARGET, torch.zeros(2, 3, 25)),
            ValueError,
            r"context has shape \(2, 3, 25\), expected \(batch, keys, 24\)",
        ),
        (
            lambda: encoder_decoder().decoder(TARGET, torch.zeros(2, 3, 24), context_valid=lengths(4, 1, 2)),
            ValueError,
            r"context_valid has shape \(2, 4\), expected that of its tokens, \(2, 3\)",
        ),
        (
            lambda: encoder_decoder()(SOURCE, TARGET, source_valid=lengths(7, 1, 2)),
            ValueError,
            r"valid has shape \(2, 7\), expected that of its tokens, \(2, 11\)",
        ),
        (
            lambda: decoder(position="learned")(tokens(1, 30)),
            ValueError,
            "Learned knows the positions 0 to 28",
        ),
        (lambda: block(decoder(), None, torch.zeros(2, 3, 24)), ValueError, "a context came, but this block attends"),
        (lambda: block(encoder_decoder().decoder, None, None), ValueError, "context is None, but this block attends"),
        (lambda: decoder().blocks[0].keys_values(torch.zeros(2, 3, 24)), ValueError, "attends to no context"),
    ],
)
def test_refuses_with_a_sentence(make, error, message):
    with pytest.raises(error, match=message):
        make()


def block(model, mask, context):
    return model.blocks[0](torch.zeros(2, 7, 24), mask, context=context)
