"""A model while it writes: its prompt, checked and in place, and what it remembers from step to step."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multihead.conventions import checked_count, in_words, kind_of
from multihead.models.decoder import Decoder, State
from multihead.models.embedding import check_range, check_tokens, check_valid
from multihead.models.encoder_decoder import EncoderDecoder


class Writing:
    """One generation; the arguments are those of :func:`multihead.models.generate`."""

    def __init__(
        self,
        model: Decoder | EncoderDecoder,
        prompt: Tensor,
        *,
        max_new_tokens: int,
        stop: Sequence[int],
        valid: Tensor | None,
        source: Tensor | None,
        source_valid: Tensor | None,
    ) -> None:
        if not isinstance(model, Decoder | EncoderDecoder):
            raise TypeError(f"model is {kind_of(model)}, expected a Decoder or an EncoderDecoder: these write tokens.")
        self._model = model
        self._decoder = model.decoder if isinstance(model, EncoderDecoder) else model
        checked_count("max_new_tokens", max_new_tokens)
        self.max_new_tokens = max_new_tokens
        self._check_prompt(prompt, valid)
        self._check_source(prompt, source, source_valid)
        for token in stop:
            checked_count("stop", token, 0)
            if token >= self._decoder.vocab_size:
                raise ValueError(f"stop={token} is not in the vocabulary of {self._decoder.vocab_size} tokens.")
        self.stop = torch.tensor(list(stop), dtype=torch.int64, device=prompt.device)
        self._prompt, self._valid = _to_the_left(prompt, valid)
        self._source, self._source_valid = source, source_valid
        self._state: State | None = None

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Without gradients and with the model in evaluation mode; afterwards all is as it was."""
        training = [module for module in self._model.modules() if module.training]
        for module in training:
            module.training = False
        try:
            with torch.inference_mode():
                yield
        finally:
            for module in training:
                module.training = True

    def beginning(self) -> tuple[Int[Tensor, " batch"], Float[Tensor, " batch"], Bool[Tensor, " batch"]]:
        """The last token of each row, its log-probability so far, and whether it has ended, before there is any."""
        rows, device = len(self._prompt), self._prompt.device
        return (
            torch.zeros(rows, dtype=torch.int64, device=device),
            torch.zeros(rows, device=device),
            torch.zeros(rows, dtype=torch.bool, device=device),
        )

    def read(self) -> Float[Tensor, "batch vocab"]:
        """Read the source and the prompt; the logits of the first new token."""
        context = None
        if isinstance(self._model, EncoderDecoder):
            context = self._model.encoder(self._source, valid=self._source_valid)
        self._state = self._decoder.start(context, context_valid=self._source_valid)
        logits = self._decoder(self._prompt, valid=self._valid, state=self._state, last_only=True)[:, -1]
        if bool(logits.isnan().any()):
            raise ValueError("the logits after the prompt are NaN: the model's weights hold NaN, or overflow.")
        return logits

    def go_on(self, tokens: Int[Tensor, " sequence"]) -> Float[Tensor, "sequence vocab"]:
        """The logits after one more token of each sequence."""
        return self._decoder(tokens[:, None], state=self._state)[:, -1]

    def reorder(self, index: Int[Tensor, " sequence"]) -> None:
        """Let sequence i go on from what is now sequence ``index[i]``."""
        assert self._state is not None  # noqa: S101
        self._state.reorder(index)

    def _check_prompt(self, prompt: Tensor, valid: Tensor | None) -> None:
        check_tokens("prompt", prompt, self._decoder.vocab_size)
        check_valid("valid", valid, prompt)
        if not prompt.numel():
            raise ValueError("prompt is empty: give at least one row and one token, such as one that says begin.")
        check_range("prompt", prompt, self._decoder.vocab_size)
        if valid is not None:
            empty = (~valid.any(1)).nonzero().flatten().tolist()
            if empty:
                raise ValueError(f"prompt is all padding in row {in_words(empty)}: give each row at least one token.")
        limit = self._decoder.config.max_length
        longest = prompt.shape[1] if valid is None else int(valid.sum(1).max())
        # the last token is written, but not read
        if limit is not None and longest + self.max_new_tokens - 1 > limit:
            raise ValueError(
                f"{longest} tokens and {self.max_new_tokens} new ones do not fit max_length={limit}: "
                "shorten the prompt, or write fewer."
            )

    def _check_source(self, prompt: Tensor, source: Tensor | None, source_valid: Tensor | None) -> None:
        if not isinstance(self._model, EncoderDecoder):
            if source is not None or source_valid is not None:
                raise ValueError("a source came, but this model has no encoder: put it into the prompt.")
            return
        if source is None:
            raise ValueError("source is None: an encoder-decoder writes about what its encoder reads.")
        check_tokens("source", source, self._model.config.vocab_size)
        check_valid("source_valid", source_valid, source)
        if source.shape[0] != prompt.shape[0]:
            raise ValueError(f"source has batch {source.shape[0]} but prompt {prompt.shape[0]}: give a row for each.")


def _to_the_left(prompt: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Each row's padding moved before its tokens, so that all rows go on at the same place."""
    if valid is None or bool(valid.all()):
        return prompt, None
    valid, order = valid.sort(dim=1, stable=True)
    padding = int((~valid).sum(1).min())
    return prompt.gather(1, order)[:, padding:], valid[:, padding:]
