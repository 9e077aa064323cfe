"""What observing costs beside the model alone and beside its eager path, and how near the weights are to eager's.

Targets: the weights of recording and page within 1e-5 of the eager path; a batch of 8 × 512 tokens observed in at most
1.25 × the plain forward, faster than eager and with at most a fifth of its memory.
"""

import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import torch

import multihead as mh
from benchmarks.measuring import PeakMemory, alternate, give_back_memory, table
from benchmarks.page import TEXT
from multihead.text import DEFAULT_SENTENCE, TextModel, load_model, read
from multihead.view.codec import encode

ALLOWED = 1e-5
"""More only where scores are so large that one of them, and its log-sum-exp, cannot be told to that in float32."""


def eager_weights(model: TextModel, text: str, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """Every layer's weights by the eager path, (heads, queries, keys)."""
    from transformers import AutoModel

    eager = AutoModel.from_pretrained(model.tokenizer.name_or_path, attn_implementation="eager").eval().to(dtype)
    inputs = model.tokenizer(text, truncation=True, max_length=model.limit, return_tensors="pt")
    with torch.no_grad():
        return tuple(weights[0] for weights in eager(**inputs, output_attentions=True).attentions)


def differences(model: TextModel, text: str) -> tuple[int, float, float, float, float]:
    """Tokens, the largest difference of recording and page from the eager path, that path's own from float64, max s."""
    recording = read(text, model, truncate=True)
    of_recording, of_page, of_eager, peak = 0.0, 0.0, 0.0, 0.0
    plain, exact = eager_weights(model, text), eager_weights(model, text, torch.float64)
    for layer, eager, true in zip(recording, plain, exact, strict=True):
        kept = recording.tile(layer.index, slice(None), slice(None))
        of_recording = max(of_recording, float((kept - eager).abs().max()))
        of_page = max(of_page, float((drawn(layer) - eager).abs().max()))
        of_eager = max(of_eager, float((eager - true).abs().max()))
        peak = max(peak, float(layer.statistics.max_score.abs().max()))
    return len(recording.texts["text"][0]), of_recording, of_page, of_eager, peak


def drawn(layer: mh.Layer) -> torch.Tensor:
    """The weights that a browser computes from a page's integers, as docs/page-format.md says."""
    encoded = encode(layer)

    def integers(planes: np.ndarray, shift: np.ndarray) -> torch.Tensor:
        coded = sum(plane.astype(np.int64) << (8 * place) for place, plane in enumerate(planes))
        return torch.from_numpy(((coded >> 1) ^ -(coded & 1)) << shift[:, None]).double().mT

    q, k = integers(encoded.q, encoded.q_shift), integers(encoded.k, encoded.k_shift)
    steps, lse = torch.from_numpy(encoded.steps), torch.from_numpy(encoded.lse)
    return ((q * steps[:, None]) @ k.mT - lse[..., None]).exp()


def run() -> str:
    """The tables."""
    model = load_model(None)
    rows = []
    for text in (DEFAULT_SENTENCE, TEXT):
        tokens, of_recording, of_page, of_eager, peak = differences(model, text)
        if max(of_recording, of_page) > max(ALLOWED, 2 * torch.finfo(torch.float32).eps * peak):
            raise AssertionError(f"weights differ from eager's by {max(of_recording, of_page):.2g} at {tokens} tokens")
        rows.append((tokens, f"{of_recording:.1e}", f"{of_page:.1e}", f"{of_eager:.1e}", f"{peak:.0f}"))
    columns = ("tokens", "recording", "page", "the eager path itself, from float64", "largest score")
    near = table("Largest difference of a weight from the eager path", columns, rows)

    from transformers import AutoModel

    inputs = model.tokenizer(TEXT, truncation=True, max_length=model.limit, return_tensors="pt")
    eager = AutoModel.from_pretrained(model.tokenizer.name_or_path, attn_implementation="eager").eval()

    def observed(**options: object) -> None:
        with mh.observe(model.model, **options):
            model.model(**inputs)

    side = math.ceil(inputs["input_ids"].shape[1] / 48)
    rivals = {
        "the model alone": lambda: model.model(**inputs),
        "eager, with its weights": lambda: eager(**inputs, output_attentions=True),
        "observed: light statistics, q, k": lambda: observed(verify=False),
        "the same, verified": observed,
        "the same, and the overview": lambda: observed(statistics=mh.Statistics(blocks=(side, side))),
        "one layer, one head, one query": lambda: observed(layers=[2], heads=[1], queries=[18]),
    }
    with torch.no_grad():
        found = alternate(rivals)
    base = found["the model alone"]
    of_one = [(name, f"{1000 * seconds:.0f} ms", f"{seconds / base:.2f} ×") for name, seconds in found.items()]
    of_one = table("Observing 512 tokens × 72 heads", ("run", "median", "ratio"), of_one)
    return "\n".join((near, of_one, batch()))


def batch() -> str:
    """Eight sequences at once: time and memory."""
    runs = of_a_batch()
    with torch.no_grad():
        found = alternate(runs)
    base = found[next(iter(found))]
    rows, alone = [], None
    for name, seconds in found.items():
        program = f"from benchmarks.observing import memory_of\nprint(memory_of({name!r}))"
        answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        peak = int(answer.stdout) / 1e6
        alone = peak if alone is None else alone
        rows.append(
            (name, f"{seconds:.2f} s", f"{seconds / base:.2f} ×", f"{peak:.0f} MB", f"{max(0.0, peak - alone):.0f} MB")
        )
    columns = ("run", "median", "ratio", "peak memory of the run", "beyond the model alone")
    return table("Observing 8 × 512 tokens × 72 heads", columns, rows)


def of_a_batch() -> dict[str, Callable[[], object]]:
    """What is compared: each runs the demo model on eight texts of 512 tokens."""
    from transformers import AutoModel

    model = load_model(None)
    name = model.tokenizer.name_or_path
    words = TEXT.split()
    texts = [" ".join(words[start:] + words[:start]) for start in range(0, 80, 10)]
    inputs = model.tokenizer(texts, truncation=True, max_length=model.limit, return_tensors="pt")
    eager = AutoModel.from_pretrained(name, attn_implementation="eager").eval()

    def observed(**options: object) -> object:
        with mh.observe(model.model, **options) as seen:
            model.model(**inputs)
        return seen

    return {
        "the model alone": lambda: model.model(**inputs),
        "observed: the default": observed,
        "observed: not verified": lambda: observed(verify=False),
        "observed: not verified, without q and k": lambda: observed(verify=False, qk=False),
        "eager, with its weights": lambda: eager(**inputs, output_attentions=True),
    }


def memory_of(name: str) -> int:
    """Largest growth of memory during one run, in bytes, after one that loaded and compiled what is needed once."""
    run = of_a_batch()[name]
    with torch.no_grad():
        run()
        give_back_memory()
        with PeakMemory() as peak:
            kept = run()
    del kept
    return peak.growth
