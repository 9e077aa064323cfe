"""Compiled attention of this library, in a model that is observed."""

import pytest
import torch
from torch import nn

from multihead.core import AttentionCall
from multihead.errors import UnsupportedAttentionError
from multihead.kernels import attend
from multihead.lens import observe


class CappedAttention(nn.Module):
    """Attention by the formula, which inside a compiler is no call of torch's."""

    def __init__(self, softcap):
        super().__init__()
        self.softcap = softcap
        self.compiled = torch.compile(self.attention)

    def attention(self, q):
        return attend(AttentionCall(q, q, q, softcap=self.softcap))

    def forward(self, q):
        return self.compiled(q)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("softcap", [2.0, None])
def test_compiled_attention_is_not_missed(softcap):
    torch._dynamo.reset()
    model, q = CappedAttention(softcap), torch.randn(1, 2, 7, 8)
    with torch.no_grad():
        model(q)
        for _ in range(2):
            with pytest.raises(UnsupportedAttentionError, match=r"set_stance\('force_eager'\)"), observe(model):
                model(q)
        with torch.compiler.set_stance("force_eager"), observe(model) as seen:
            model(q)
    assert seen.check().passed
