"""The README's example runs as it stands, on the packaged model."""

import re
from pathlib import Path

import pytest
import torch

from multihead.text import DEFAULT_SENTENCE, load_model
from tests.lens.hosts import ids, llama

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.demo
def test_the_example_in_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = re.search(r"## In Python\n\n```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL).group(1)
    demo = load_model(None)
    inputs = demo.tokenizer(DEFAULT_SENTENCE, return_tensors="pt")
    names = {
        "model": demo.model,
        "inputs": inputs,
        "dataloader": [inputs],
        "language_model": llama(eos_token_id=None),
        "question": ids(1, 5),
        "tokens": demo.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0]),
        "attentions": [torch.rand(1, 12, 28, 28).softmax(-1) for _ in range(6)],
        "valid": torch.ones(2, 11, dtype=torch.bool),
        "x": torch.randn(2, 7, 512),
        "context": torch.randn(2, 11, 512),
        "prompt": torch.randn(2, 7, 512),
        "token": torch.randn(2, 1, 512),
        "encoder": torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(24, 2, batch_first=True), 1),
        "source": torch.randint(37_000, (2, 7)),
        "begin": torch.ones(2, 1, dtype=torch.int64),
    }
    names |= dict(zip("qkv", torch.randn(3, 2, 8, 11, 64), strict=True))
    exec(compile(example, str(README), "exec"), names)
    assert names["y"].shape == (2, 1, 512)
    assert names["cache"].length == 8
    assert names["written"].tokens.shape == (2, 5)
    assert len(names["recording"].traits()) == 72
    assert names["story"].layers[0].sizes.keys == 24
    assert names["seen"].top_weights.shape == (2, 8, 11, 8)
    loaded = names["mh"].load(tmp_path / "run.safetensors")
    torch.testing.assert_close(loaded.rows(2, [18]), names["recording"].rows(2, [18]))
