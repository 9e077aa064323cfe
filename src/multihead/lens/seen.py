"""What an observation saw."""

from collections.abc import Mapping
from dataclasses import dataclass

from multihead.core import Statistics
from multihead.core.statistics import check_statistics
from multihead.errors import CheckError, ObservationError
from multihead.lens.measuring import LayerCheck, Sight
from multihead.lens.stitching import prompt_tokens, read_by, stitched, without_the_last
from multihead.lens.texts import Tokens, with_texts
from multihead.recording import PROMPT_TOKENS, Layer, Recording


@dataclass(frozen=True)
class CheckReport:
    """How well what was seen agrees with the host's own output, layer by layer."""

    layers: tuple[LayerCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether every layer was compared and agrees."""
        return all(layer.passed for layer in self.layers)

    def __str__(self) -> str:
        return "\n".join(str(layer) for layer in self.layers)


class Seen:
    """What :func:`observe` saw: the layers of every run of the model.

    A run is one outermost forward of the model, or of a part of it that was called on its own (``generate`` of an
    encoder-decoder calls the encoder first). Runs in which nothing that was asked for appeared are left out.
    """

    def __init__(
        self,
        model: str,
        provenance: Mapping[str, str],
        statistics: Statistics = Statistics(),  # noqa: B008
    ) -> None:
        self._model = model
        self._statistics = statistics
        self._provenance = dict(provenance)
        self._runs: list[tuple[Sight, ...]] = []
        self._forwards = 0
        self._calls = 0
        self._elsewhere = False

    @property
    def runs(self) -> tuple[tuple[Layer, ...], ...]:
        """The layers of every run, in the order in which they were computed."""
        return tuple(tuple(sight.layer for sight in run) for run in self._runs)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers of the last run.

        Raises:
            ObservationError: nothing was seen; the message says what was looked for.
        """
        return tuple(sight.layer for sight in self._run(-1))

    def check(self) -> CheckReport:
        """Compare Σ P v, recomputed from the weights that were measured, with what the host computed, in every run.

        The comparison was made when each layer was seen (``verify=True``), at the queries and for the heads that were
        observed. A layer agrees if its largest difference, relative to the largest magnitude of the host's output, is
        within 1e-4, or within four units in the last place of the host's dtype and of its scores, if that is more.

        Returns:
            The largest difference and the allowed one, for each layer.

        Raises:
            CheckError: a layer differs, or could not be compared; the message names it and says why.
            ObservationError: nothing was seen.
        """
        self._run(-1)
        report = CheckReport(tuple(sight.check for run in self._runs for sight in run))
        failed = [check for check in report.layers if not check.passed]
        if failed:
            several = len(self._runs) > 1
            lines = "\n".join(f"  {f'run {check.run}, ' if several else ''}{check}" for check in failed)
            raise CheckError(
                f"{len(failed)} of {len(report.layers)} layers do not agree with the output of {self._model}:\n{lines}"
            )
        return report

    def recording(self, tokens: Tokens | None = None, *, source: Tokens | None = None, run: int = -1) -> Recording:
        """What was seen in one run, with its tokens and where it comes from.

        Args:
            tokens: the tokens of a single sequence, or one list for each sequence of the batch, padding included;
                None: positions. Of an encoder-decoder these are the target's.
            source: likewise, what the encoder read.
            run: which run; the last one.

        Raises:
            ObservationError: nothing was seen, or the tokens do not fit.
        """
        layers, texts = with_texts(self._run(run), tokens, source)
        return Recording(layers, texts, dict(self._provenance))

    def generation(
        self, tokens: Tokens | None = None, *, source: Tokens | None = None, statistics: Statistics | None = None
    ) -> Recording:
        """All runs of one ``generate()`` as one recording: each attention over the whole text that was read.

        The row of a token is what it saw when it was read, in the prompt or in its step, at its place in the text; keys
        are those of all tokens. So weights are those of one pass of a causal model over the text, to rounding, whether
        the cache grows, is of fixed size or slides. Encoder and cross-attention are layers as always. Statistics are
        measured again, over the whole.

        Args:
            tokens: of the text, prompt and what was written, as :meth:`recording` takes them. The last token that was
                written has not been read; it is left out where it is given.
            source: of what an encoder read.
            statistics: of layers that several runs have; ``rows`` and ``columns`` are places in the text. None: those
                that were asked for.

        Raises:
            ValueError: rows or columns that the text does not have.
            ObservationError: nothing was seen; the runs are not those of one generation; sequences changed places
                between steps (beam search) or were taken back (assisted generation); queries and keys were not kept; or
                the tokens do not fit.

        Memory: O(n) as a recording of one pass, while only these are held: a dense bias, and a mask that is no
        combination of causal, window and padding, take O(n²).
        """
        self._run(-1)
        if statistics is not None:
            check_statistics(statistics)
        sights = stitched(self._runs, self._statistics if statistics is None else statistics)
        read = read_by(sights, self._runs[-1])
        layers, texts = with_texts(sights, without_the_last(tokens, read), source)
        told = {"runs": str(len(self._runs)), PROMPT_TOKENS: str(prompt_tokens(self._runs))}
        return Recording(layers, texts, self._provenance | told)

    def __repr__(self) -> str:
        runs = len(self._runs)
        last = f", {len(self._runs[-1])} layers in the last" if runs else ""
        return f"Seen({self._model}: {runs} runs{last})"

    def _add(self, sights: list[Sight], calls: int) -> bool:
        """Take a run in, with the number of attentions that appeared; whether any was seen."""
        self._forwards += 1
        self._calls += calls
        if sights:
            self._runs.append(tuple(sights))
        return bool(sights)

    def _run(self, number: int) -> tuple[Sight, ...]:
        if not self._runs:
            raise ObservationError(f"nothing was seen of {self._model}: {self._why_nothing()}")
        if not -len(self._runs) <= number < len(self._runs):
            raise ObservationError(f"run {number} out of range: there were {len(self._runs)} runs, counted from 0.")
        return self._runs[number]

    def _why_nothing(self) -> str:
        if self._calls:
            return (
                "attention appeared in what ran, but was left out: layers= does not name it, or it cannot be observed, "
                "as a warning said."
            )
        if self._forwards:
            return (
                "it ran, but called neither torch.nn.functional.scaled_dot_product_attention, nn.MultiheadAttention, "
                "FlexAttention, an attention function of transformers nor multihead's own. Attention written out as "
                "matrix products and flash_attn cannot be seen."
            )
        if self._elsewhere:
            return "it ran in another thread. Observe it in the thread that runs it."
        return "it did not run to its end inside the with block."
