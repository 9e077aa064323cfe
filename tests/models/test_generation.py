"""What models write: on caches as without, alone as in a batch, and as transformers writes with the same weights."""

import copy
import itertools

import pytest
import torch
from torch import nn

import multihead as mh
from multihead.models import Beam, Choice, Decoder, Encoder, Greedy, Sample, generate, stream
from tests.accuracy import check
from tests.models.made import POSITIONS, config, decoder, encoder_decoder, lengths, randomised, tokens

PROMPT, SOURCE = tokens(2, 5, seed=1), tokens(2, 11, seed=2)
BEGIN = torch.zeros(2, 1, dtype=torch.int64)
STYLES = {
    "post-norm": {},
    "pre-norm": {"norm_first": True, "norm": "rms", "activation": "swiglu", "bias": False},
    "many options": {"norm_first": True, "qk_norm": True, "output_gate": True, "softcap": 3.0, "sinks": True},
}


def whole(model, prompt, source=None, **valid):
    """Logits at every place, computed at once and without a cache."""
    if source is None:
        return model(prompt, **valid)
    return model(source, prompt, **valid)


@torch.no_grad()
def by_hand(model, prompt, count, source=None, **valid):
    """Greedy tokens, each from all tokens before it."""
    before = prompt.shape[1]
    for _ in range(count):
        following = whole(model, prompt, source, **valid)[:, -1:].argmax(-1)
        prompt = torch.cat([prompt, following], 1)
    return prompt[:, before:]


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("style", STYLES)
def test_logits_over_a_cache_are_those_without(style, position):
    """Prefill, a chunk and steps of one token: the same logits within the bar of all comparisons."""
    model, text = decoder(position=position, **STYLES[style]), tokens(2, 11, seed=3)
    with torch.no_grad():
        state = model.start()
        parts = [model(part, state=state) for part in text.split([5, 3, 1, 1, 1], 1)]
        check(torch.cat(parts, 1), copy.deepcopy(model).double()(text), model(text))
    assert state.length == 11


@pytest.mark.parametrize("position", POSITIONS)
def test_logits_over_a_cache_with_padding_and_a_source(position):
    model, text = encoder_decoder(position=position), tokens(2, 7, seed=3)
    valid, source_valid = lengths(7, 7, 4, left=True), lengths(11, 5, 11)
    with torch.no_grad():
        context = model.encoder(SOURCE, valid=source_valid)
        state = model.decoder.start(context, context_valid=source_valid)
        parts = [
            model.decoder(text[:, :1], valid=valid[:, :1], state=state),
            model.decoder(text[:, 1:5], valid=valid[:, 1:5], state=state),
            model.decoder(text[:, 5:6], state=state),
            model.decoder(text[:, 6:], state=state),
        ]
        options = {"source_valid": source_valid, "target_valid": valid}
        exact, plain = (model_(SOURCE, text, **options) for model_ in (copy.deepcopy(model).double(), model))
    for row, count in enumerate((7, 4)):
        check(torch.cat(parts, 1)[row, -count:], exact[row, -count:], plain[row, -count:])


@torch.no_grad()
def test_padding_may_come_after_calls_without():
    model, text, valid = decoder(), tokens(2, 7, seed=3), lengths(3, 3, 1, left=True)
    state = model.start()
    parts = [model(text[:, :4], state=state), model(text[:, 4:], valid=valid, state=state)]
    expected = model(text, valid=torch.cat([torch.ones(2, 4, dtype=torch.bool), valid], 1))
    for row, real in enumerate(([0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 6])):
        torch.testing.assert_close(torch.cat(parts, 1)[row, real], expected[row, real], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_state_goes_on_in_another_order():
    model, text, index = encoder_decoder(), tokens(2, 7, seed=3), torch.tensor([1, 0, 1])
    valid, source_valid = lengths(7, 7, 4, left=True), lengths(11, 5, 11)
    state = model.decoder.start(model.encoder(SOURCE, valid=source_valid), context_valid=source_valid)
    model.decoder(text[:, :5], valid=valid[:, :5], state=state)
    state.reorder(index)
    found = model.decoder(text[index, 5:], state=state)
    options = {"source_valid": source_valid[index], "target_valid": valid[index]}
    torch.testing.assert_close(found, model(SOURCE[index], text[index], **options)[:, 5:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("style", STYLES)
def test_greedy_is_argmax_step_by_step(style, position):
    model = decoder(position=position, **STYLES[style])
    expected = by_hand(model, PROMPT, 17)
    assert len(expected.unique()) > 1, "a text of one token would prove little"
    assert torch.equal(generate(model, PROMPT, max_new_tokens=17).tokens, expected)


@pytest.mark.parametrize("position", POSITIONS)
def test_greedy_with_a_source(position):
    model = encoder_decoder(position=position, **STYLES["pre-norm"])
    valid = lengths(11, 5, 11)
    expected = by_hand(model, BEGIN, 17, SOURCE, source_valid=valid)
    assert len(expected.unique()) > 1, "a text of one token would prove little"
    found = generate(model, BEGIN, source=SOURCE, source_valid=valid, max_new_tokens=17)
    assert torch.equal(found.tokens, expected)
    unpadded = generate(model, BEGIN, source=SOURCE, max_new_tokens=17)
    assert not torch.allclose(found.log_probabilities[0], unpadded.log_probabilities[0])


@pytest.mark.parametrize("choice", [Greedy(), Beam(3)], ids=["greedy", "beam"])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_prompts_of_different_lengths_are_each_as_alone(left, position, choice):
    model, prompt = decoder(position=position), tokens(3, 7, seed=4)
    counts = (7, 3, 5)
    found = generate(model, prompt, valid=lengths(7, *counts, left=left), max_new_tokens=11, choice=choice)
    for row, count in enumerate(counts):
        alone = prompt[row : row + 1, -count:] if left else prompt[row : row + 1, :count]
        expected = generate(model, alone, max_new_tokens=11, choice=choice)
        assert torch.equal(found.tokens[row : row + 1], expected.tokens)
        torch.testing.assert_close(found.log_probabilities[row : row + 1], expected.log_probabilities)


def test_padding_that_all_prompts_share_is_left_out():
    model, prompt = decoder(), tokens(2, 9, seed=4)
    found = generate(model, prompt, valid=lengths(9, 5, 3), max_new_tokens=5)
    expected = generate(model, prompt[:, :5], valid=lengths(5, 5, 3), max_new_tokens=5)
    assert torch.equal(found.tokens, expected.tokens)


@pytest.mark.parametrize("choice", [Greedy(), Beam(1, 0.0), Beam(1, 0.6), Beam(3)], ids=str)
def test_stop_tokens_end_a_row_and_no_other(choice):
    model, prompt = decoder(**STYLES["pre-norm"]), tokens(5, 3, seed=5)
    stop = [2, 7]
    found = generate(model, prompt, max_new_tokens=13, stop=stop, choice=choice)
    rows = found.rows()
    assert len(set(map(len, rows))) > 1, "rows of one length would prove little"
    assert found.tokens.shape[1] <= 13
    for row, (tokens_, length) in enumerate(zip(found.tokens.tolist(), found.lengths.tolist(), strict=True)):
        assert rows[row] == tokens_[:length]
        assert not set(rows[row]) & set(stop)
        assert len(set(tokens_[length:])) <= 1, "behind a row's end its stop token stands again"
        assert set(tokens_[length:]) <= set(stop)
        alone = generate(model, prompt[row : row + 1], max_new_tokens=13, stop=stop, choice=choice)
        assert alone.rows() == [rows[row]]
        torch.testing.assert_close(alone.log_probabilities, found.log_probabilities[row : row + 1])
    longest = max(length + (length < 13) for length in found.lengths.tolist())
    assert found.tokens.shape[1] == longest, "it ends with the last row"


def test_token_0_ends_a_row_too():
    class Falling(Choice):
        def choose(self, logits, generator=None):
            written.append(3 - len(written))
            return torch.full(logits.shape[:1], written[-1])

    written: list[int] = []
    found = generate(decoder(), PROMPT, max_new_tokens=9, stop=[0], choice=Falling())
    assert found.rows() == [[3, 2, 1]] * 2


@pytest.mark.parametrize("target", [7, 17])
def test_a_target_of_another_vocabulary(target):
    model = encoder_decoder(target_vocab_size=target)
    prompt, source = torch.tensor([[target - 1]]), torch.tensor([[12, 3, 0]])
    found = generate(model, prompt, source=source, max_new_tokens=5, stop=[target - 1]).tokens
    expected = by_hand(model, prompt, 5, source)
    assert torch.equal(found, expected[:, : found.shape[1]])
    with pytest.raises(ValueError, match=f"prompt holds token {target}, expected 0 to {target - 1}"):
        generate(model, prompt + 1, source=source, max_new_tokens=5)
    with pytest.raises(ValueError, match="source holds token 13, expected 0 to 12"):
        generate(model, prompt, source=source + 1, max_new_tokens=5)
    with pytest.raises(ValueError, match=f"stop={target} is not in the vocabulary of {target} tokens"):
        generate(model, prompt, source=source, max_new_tokens=5, stop=[target])


@pytest.mark.parametrize("choice", [Greedy(), Beam(2)], ids=str)
def test_log_probabilities_in_half_precision_are_summed_in_full(choice):
    model = decoder().bfloat16()
    found = generate(model, PROMPT, max_new_tokens=1, choice=choice).log_probabilities
    with torch.no_grad():
        expected = model(PROMPT)[:, -1].float().log_softmax(-1).max(-1).values
    torch.testing.assert_close(found, expected)


@torch.no_grad()
def total(model, prompt, text):
    """The log-probability of a text after a prompt, by the model's logits at once."""
    text = torch.tensor(text)
    everything = torch.cat([prompt.expand(len(text), -1), text], 1)
    found = model(everything[:, :-1]).log_softmax(-1)[:, prompt.shape[1] - 1 :]
    return found.gather(-1, text[..., None]).squeeze(-1).sum(1)


def test_log_probabilities_are_those_of_the_text_with_its_stop():
    model, prompt = decoder(), tokens(5, 3, seed=5)
    for choice in (Greedy(), Sample(temperature=0.5, top_k=3), Beam(3)):
        generator = torch.Generator().manual_seed(0)
        found = generate(model, prompt, max_new_tokens=7, stop=[2], choice=choice, generator=generator)
        for row, length in enumerate(found.lengths.tolist()):
            text = [found.tokens[row, : length + 1].tolist()]
            torch.testing.assert_close(total(model, prompt[row : row + 1], text)[0], found.log_probabilities[row])


def every_text(vocabulary: int, longest: int, stop: int | None):
    """Every text that generation could write: up to a stop token, or of full length."""
    others = [token for token in range(vocabulary) if token != stop]
    for length in range(1, longest + 1):
        for beginning in itertools.product(others, repeat=length - 1):
            if stop is not None:
                yield (*beginning, stop)
            if length == longest:
                yield from ((*beginning, token) for token in others)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("stop", [None, 1])
@pytest.mark.parametrize("seed", range(3))
def test_a_beam_that_is_wide_enough_finds_the_best_of_all(seed, stop, penalty):
    model = decoder(seed=seed, vocab_size=5, num_kv_heads=None)
    prompt = tokens(2, 3, seed=seed) % 5
    texts = list(every_text(5, 4, stop))
    assert len(texts) == (5**4 if stop is None else 4**4 + sum(4**n for n in range(4)))
    beam = Beam(len(texts), penalty)
    found = generate(model, prompt, max_new_tokens=4, stop=[] if stop is None else [stop], choice=beam)
    for row in range(2):
        scores = {}
        for length in range(1, 5):
            some = [text for text in texts if len(text) == length]
            if some:
                values = total(model, prompt[row : row + 1], some) / beam.penalty(length)
                scores |= dict(zip(some, values.tolist(), strict=True))
        best = max(scores, key=scores.get)
        assert tuple(found.tokens[row].tolist()[: len(best)]) == best
        assert abs(found.log_probabilities[row] / beam.penalty(len(best)) - scores[best]) < 1e-4


@torch.no_grad()
def beam_by_definition(model, prompt, beam, limit, stop):
    """The words of ``Beam``, text after text and without a cache."""
    live, ended = [((), 0.0)], []
    for length in range(1, limit + 1):
        texts = torch.tensor([text for text, _ in live], dtype=torch.int64).view(len(live), length - 1)
        logits = model(torch.cat([prompt.expand(len(live), -1), texts], 1))[:, -1].log_softmax(-1).tolist()
        more = [
            ((*text, token), before + value)
            for (text, before), row in zip(live, logits, strict=True)
            for token, value in enumerate(row)
        ]
        more.sort(key=lambda pair: -pair[1])
        ended += [(text, value / beam.penalty(length)) for text, value in more[: beam.width] if text[-1] in stop]
        live = [(text, value) for text, value in more if text[-1] not in stop][: beam.width]
        if length == limit:
            ended += [(text, value / beam.penalty(length)) for text, value in live]
        ended = sorted(ended, key=lambda pair: -pair[1])[: beam.width]
        if len(ended) == beam.width or (ended and ended[0][1] >= live[0][1] / beam.penalty(limit)):
            break
    return [token for token in ended[0][0] if token not in stop]


@pytest.mark.parametrize("beam", [Beam(2, 0.0), Beam(3, 0.6), Beam(3, 3.0)], ids=str)
def test_a_beam_is_its_definition(beam):
    model, prompt, stop = decoder(**STYLES["pre-norm"]), tokens(61, 3, seed=6), [2, 7, 11]
    found = generate(model, prompt, max_new_tokens=7, stop=stop, choice=beam).rows()
    assert found == [beam_by_definition(model, row[None], beam, 7, stop) for row in prompt]


class Chain(Decoder):
    """A text in which each token depends on the one before it and on its place alone."""

    def __init__(self, logits):
        super().__init__(config(vocab_size=logits.shape[-1]))
        self.following = logits

    def start(self, *args, **options):
        state = super().start(*args, **options)
        state.place = 0
        return state

    def forward(self, tokens, *, state=None, **_):
        if state is None:
            return self.following[torch.arange(tokens.shape[1]), tokens]
        state.place += 1
        return self.following[state.place - 1, tokens]


def test_stop_tokens_crowd_out_no_text():
    """Where every text followed could end in each of many ways, the texts that go on are still the likeliest."""
    prompt, stop, beam = torch.arange(13)[:, None], [2, 7, 11], Beam(5, 6.0)
    for seed in range(30):
        logits = torch.randn(7, 13, 13, generator=torch.Generator().manual_seed(seed))
        logits[..., stop] += 0.5
        model = Chain(logits)
        found = generate(model, prompt, max_new_tokens=7, stop=stop, choice=beam).rows()
        assert found == [beam_by_definition(model, row[None], beam, 7, stop) for row in prompt], seed


def test_the_length_penalty_favours_longer_texts():
    assert Beam(4, 0.6).penalty(7) == pytest.approx((12 / 6) ** 0.6)
    model, prompt = decoder(vocab_size=5, num_kv_heads=None), tokens(7, 3) % 5
    short, long = (
        generate(model, prompt, max_new_tokens=6, stop=[1], choice=Beam(64, penalty)).lengths.float().mean()
        for penalty in (0.0, 5.0)
    )
    assert short < long


@pytest.mark.parametrize("penalty", [0.0, 0.6, 5.0])
def test_a_beam_of_one_is_greedy(penalty):
    for seed in range(5):
        model, prompt = decoder(seed=seed), tokens(3, 4, seed=seed)
        greedy = generate(model, prompt, max_new_tokens=11, stop=[2, 7])
        found = generate(model, prompt, max_new_tokens=11, stop=[2, 7], choice=Beam(1, penalty))
        assert torch.equal(found.tokens, greedy.tokens)
        torch.testing.assert_close(found.log_probabilities, greedy.log_probabilities)


@pytest.mark.parametrize("penalty", [0.0, 5.0])
def test_the_beams_of_a_row_do_not_depend_on_the_rows_beside_it(penalty):
    """A row that is done waits for the others; what it would go on to find is not its answer alone."""
    model, prompt = decoder(**STYLES["pre-norm"]), tokens(61, 3, seed=6)
    options = {"max_new_tokens": 9, "stop": [2, 7, 11], "choice": Beam(2, penalty)}
    together = generate(model, prompt, **options).rows()
    assert together == [generate(model, prompt[row : row + 1], **options).rows()[0] for row in range(61)]


def test_a_beam_wider_than_the_vocabulary():
    model = decoder(vocab_size=3, num_kv_heads=None)
    found = generate(model, torch.zeros(1, 1, dtype=torch.int64), max_new_tokens=5, stop=[2], choice=Beam(7))
    assert found.tokens.shape[0] == 1
    assert found.log_probabilities.isfinite().all()


def test_a_beam_with_a_source():
    """Each row's beams read their own source; the whole batch gives what each row gives alone and without padding."""
    model, counts = encoder_decoder(seed=2, **STYLES["pre-norm"]), (5, 11)
    options = {"max_new_tokens": 9, "stop": [2], "choice": Beam(3)}
    found = generate(model, BEGIN, source=SOURCE, source_valid=lengths(11, *counts), **options)
    assert min(map(len, found.rows())) > 1, "texts that end at once would prove little"
    for row, count in enumerate(counts):
        alone = generate(model, BEGIN[:1], source=SOURCE[row : row + 1, :count], **options)
        assert alone.rows() == [found.rows()[row]]
        torch.testing.assert_close(alone.log_probabilities, found.log_probabilities[row : row + 1])


def test_a_stream_is_what_is_generated():
    model = decoder()
    expected = generate(model, PROMPT, max_new_tokens=11, stop=[2]).tokens
    parts = list(stream(model, PROMPT, max_new_tokens=11, stop=[2]))
    assert torch.equal(torch.stack(parts, 1), expected)


def test_a_stream_takes_what_generate_takes():
    model = encoder_decoder(**STYLES["pre-norm"])
    prompt = tokens(2, 3, seed=5)
    options = {
        "valid": lengths(3, 3, 1, left=True),
        "source": SOURCE,
        "source_valid": lengths(11, 5, 11),
        "max_new_tokens": 13,
        "stop": [2, 7],
        "choice": Sample(temperature=3.0),
    }
    expected = generate(model, prompt, generator=torch.Generator().manual_seed(5), **options).tokens
    parts = list(stream(model, prompt, generator=torch.Generator().manual_seed(5), **options))
    assert torch.equal(torch.stack(parts, 1), expected)


def test_a_stream_computes_when_it_is_asked():
    model, calls = decoder(), []
    model.register_forward_hook(lambda module, inputs, output: calls.append((inputs[0].shape[1], output.shape[1])))
    tokens_ = stream(model, PROMPT, max_new_tokens=5)
    assert not calls
    assert next(tokens_).shape == (2,)
    assert calls == [(5, 1)], "of the prompt only the last token's logits are computed"
    next(tokens_)
    assert calls == [(5, 1), (1, 1)]


def test_every_step_reads_one_token_and_the_source_is_read_once():
    model, reads = encoder_decoder(), []
    model.encoder.register_forward_pre_hook(lambda module, inputs: reads.append("encoder"))
    cross = model.decoder.blocks[0].cross_attention
    cross.k_proj.register_forward_pre_hook(lambda module, inputs: reads.append("context"))
    own = model.decoder.blocks[0].attention
    own.k_proj.register_forward_pre_hook(lambda module, inputs: reads.append(inputs[0].shape[1]))
    generate(model, torch.zeros(2, 3, dtype=torch.int64), source=SOURCE, max_new_tokens=5)
    assert reads == ["encoder", "context", 3, 1, 1, 1, 1]


def test_the_lens_sees_every_step():
    model = encoder_decoder(num_kv_heads=None)
    with mh.observe(model, layers="*.cross_attention") as seen:
        generate(model, BEGIN, source=SOURCE, max_new_tokens=5)
    assert seen.check().passed
    assert [len(run) for run in seen.runs] == [3] * 5
    assert {(layer.sizes.queries, layer.sizes.keys) for run in seen.runs for layer in run} == {(1, 11)}


class TestTheModelIsLeftAsItWas:
    def modes(self, model):
        return [module.training for module in model.modules()]

    def test_training_or_not_and_partly(self):
        model = decoder(dropout=0.5)
        expected = generate(model, PROMPT, max_new_tokens=7).tokens
        model.train()
        model.blocks[1].eval()
        before = self.modes(model)
        assert torch.equal(generate(model, PROMPT, max_new_tokens=7).tokens, expected), "it writes without dropout"
        assert self.modes(model) == before
        tokens_ = stream(model, PROMPT, max_new_tokens=7)
        next(tokens_)
        assert self.modes(model) == before, "between two tokens too"
        assert not torch.is_inference_mode_enabled()

    def test_no_gradient_is_prepared(self):
        class Watching(Choice):
            def choose(self, logits, generator=None):
                modes.append(torch.is_inference_mode_enabled())
                return logits.argmax(-1)

        modes: list[bool] = []
        generate(decoder(), PROMPT, max_new_tokens=3, choice=Watching())
        assert modes == [True] * 3

    def test_after_an_error(self):
        model = decoder().train()
        with pytest.raises(RuntimeError, match="dice"):
            generate(model, PROMPT, max_new_tokens=7, choice=Broken())
        assert all(self.modes(model))
        assert not torch.is_inference_mode_enabled()

    def test_what_is_written_can_be_learned_from(self):
        """Inference tensors cannot be saved for a gradient; these are none."""
        model = decoder()
        for choice in (Greedy(), Beam(2)):
            found = generate(model, PROMPT, max_new_tokens=3, choice=choice)
            (model(found.tokens).mean((1, 2)) * found.log_probabilities).sum().backward()
        model(torch.stack(list(stream(model, PROMPT, max_new_tokens=3)), 1)).sum().backward()


class Broken(Choice):
    def choose(self, logits, generator=None):
        raise RuntimeError("the dice fell off the table")


def test_a_choice_of_ones_own():
    class Second(Choice):
        def choose(self, logits, generator=None):
            return logits.topk(2, -1).indices[:, 1]

    model = decoder()
    found = generate(model, PROMPT, max_new_tokens=1, choice=Second()).tokens
    assert torch.equal(found[:, 0], model(PROMPT)[:, -1].argsort(-1, descending=True)[:, 1])


def test_the_same_seed_draws_the_same_tokens():
    model = decoder()

    def drawn(seed, choice=None):
        generator = torch.Generator().manual_seed(seed)
        return generate(model, PROMPT, max_new_tokens=11, choice=choice or Sample(), generator=generator).tokens

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    greedy = generate(model, PROMPT, max_new_tokens=11).tokens
    assert torch.equal(drawn(0, Sample(temperature=1e-4)), greedy), "greedy is the limit"
    assert not torch.equal(drawn(0), greedy)


def test_positions_that_end():
    model = randomised(Decoder(config(position="learned", max_length=7)))
    assert generate(model, tokens(1, 3), max_new_tokens=5).tokens.shape == (1, 5)
    with pytest.raises(ValueError, match="3 tokens and 6 new ones do not fit max_length=7"):
        generate(model, tokens(1, 3), max_new_tokens=6)
    with pytest.raises(ValueError, match="3 tokens and 6 new ones do not fit max_length=7"):
        generate(model, tokens(2, 3), valid=lengths(3, 1, 3), max_new_tokens=6)
    # padding takes no place
    generate(model, tokens(1, 20), valid=lengths(20, 3), max_new_tokens=5)


def test_a_refused_call_has_read_nothing():
    model = randomised(Decoder(config(position="learned", max_length=7)))
    some, valid = tokens(1, 5), torch.tensor([[False, True, True, True, True]])
    state, untouched = model.start(), model.start()
    with torch.no_grad():
        for one in (state, untouched):
            model(some, valid=valid, state=one)
        with pytest.raises(ValueError, match="position 7 came"):
            model(tokens(1, 5), state=state)
        following = tokens(1, 1, seed=3)
        torch.testing.assert_close(model(following, state=state), model(following, state=untouched), rtol=0, atol=0)


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: generate(decoder(), PROMPT, max_new_tokens=0), ValueError, "max_new_tokens=0 is too small"),
        (lambda: generate(decoder(), PROMPT, max_new_tokens=2.0), TypeError, "max_new_tokens=2.0 is a float"),
        (lambda: generate(decoder(), PROMPT[:, :0], max_new_tokens=2), ValueError, "prompt is empty"),
        (lambda: generate(decoder(), PROMPT[:0], max_new_tokens=2), ValueError, "prompt is empty"),
        (lambda: generate(decoder(), PROMPT[0], max_new_tokens=2), ValueError, r"prompt has shape \(5\)"),
        (lambda: generate(decoder(), PROMPT + 50, max_new_tokens=2), ValueError, "prompt holds token 6., expected"),
        (lambda: generate(decoder(), PROMPT.float(), max_new_tokens=2), TypeError, "prompt has dtype torch.float32"),
        (
            lambda: generate(decoder(), PROMPT, valid=lengths(5, 3, 0), max_new_tokens=2),
            ValueError,
            "prompt is all padding in row 1",
        ),
        (lambda: generate(decoder(), PROMPT, max_new_tokens=2, stop=[13]), ValueError, "stop=13 is not in the vocab"),
        (lambda: generate(decoder(), PROMPT, max_new_tokens=2, stop=["a"]), TypeError, "stop='a' is a str"),
        (lambda: generate(decoder(), PROMPT, max_new_tokens=2, choice="greedy"), TypeError, "choice is a str, expect"),
        (lambda: stream(decoder(), PROMPT, max_new_tokens=2, choice="greedy"), TypeError, "choice is a str, expected"),
        (lambda: stream(decoder(), PROMPT, max_new_tokens=2, choice=Beam()), TypeError, "knows its tokens only at the"),
        (lambda: generate(decoder(), PROMPT, max_new_tokens=2, source=SOURCE), ValueError, "this model has no encoder"),
        (lambda: generate(encoder_decoder(), BEGIN, max_new_tokens=2), ValueError, "source is None"),
        (
            lambda: generate(encoder_decoder(), BEGIN[:1], max_new_tokens=2, source=SOURCE),
            ValueError,
            "source has batch 2 but prompt 1",
        ),
        (lambda: generate(Encoder(config()), PROMPT, max_new_tokens=2), TypeError, "model is an Encoder, expected a"),
        (lambda: generate(nn.Linear(2, 2), PROMPT, max_new_tokens=2), TypeError, "model is a Linear, expected a Dec"),
        (lambda: generate(broken(), PROMPT, max_new_tokens=2), ValueError, "the logits after the prompt are NaN"),
        (lambda: beside(encoder_decoder()), ValueError, "a state came beside a context"),
        (lambda: beside(encoder_decoder(), again=False), ValueError, "a state came beside a context"),
        (lambda: of_another_batch(decoder()), ValueError, "tokens have batch 3 but the state 2"),
    ],
)
def test_refuses_with_a_sentence(make, error, message):
    with pytest.raises(error, match=message):
        make()


def broken():
    model = randomised(decoder())
    with torch.no_grad():
        model.output.weight[3] = torch.nan
    return model


def beside(model, *, again=True):
    context, valid = torch.zeros(2, 3, 24), lengths(3, 1, 3)
    state = model.decoder.start(context)
    return model.decoder(BEGIN, context if again else None, context_valid=None if again else valid, state=state)


@torch.no_grad()
def of_another_batch(model):
    state = model.start()
    model(PROMPT, valid=lengths(5, 5, 3), state=state)
    return model(tokens(3, 1), state=state)
