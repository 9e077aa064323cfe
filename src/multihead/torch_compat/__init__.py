"""Drop-in replacements of torch's attention modules: change the import, or the model, and keep the checkpoint.

>>> import torch
>>> from multihead import torch_compat
>>> model = torch.nn.TransformerDecoderLayer(d_model=12, nhead=3)
>>> model = torch_compat.replace(model)     # and with it every torch.nn.MultiheadAttention inside

Masks keep torch's sense: True hides, the opposite of everywhere else in this library and of
``scaled_dot_product_attention``. What is not as torch 2.13 has it, on purpose:

============================================  ==========================================================================
where                                         here, and in torch 2.13
============================================  ==========================================================================
weights with dropout                          those before dropout: every row sums to 1 (torch's do not)
a query that sees no key                      0 before ``out_proj``, weights 0, finite gradients (torch: NaN where
                                              weights are asked for or the fast path is taken)
NaN or inf in a hidden key                    does not leak (torch: poisons every query), except in a compiled graph,
                                              which cannot look for it
-inf in a float mask                          hides as True does: the two rows above hold for it
``is_causal=True`` alone                      is enough; the last query sees every key (torch demands a mask)
``is_causal=True`` and ``attn_mask``          the mask counts (torch may drop it and align queries with the first keys,
                                              which is wrong with a cache and with ``add_zero_attn``)
``need_weights``                              never changes the output
evaluation without gradients                  computes what training does, dropout apart (torch's fast path takes every
                                              number of a float mask but 0 as hidden)
padding in ``nn.TransformerEncoder``          after :func:`replace`, padded positions are computed too (torch's nested
                                              path leaves zeros there)
dropout                                       may draw other random numbers from the same seed
weights under autocast                        have the query's dtype (torch: now and then the autocast type)
integer masks, nested tensors, ``dropout=1``  refused; every refusal is a ``ValueError`` or ``TypeError`` with a
                                              sentence (torch: also ``AssertionError`` and ``RuntimeError``)
``named_parameters()``                        says where parameters live: ``in_proj.weight`` for ``in_proj_weight``.
                                              ``state_dict()``, attributes and the order of ``parameters()`` are
                                              torch's. Pruning and parametrizations go on ``in_proj``
what is missing                               ``merge_masks``, ``torch.jit.script``, and being an instance of torch's
                                              class
============================================  ==========================================================================

Grouped key/value heads and heads of any size cannot be said in torch's signature:
:meth:`multihead.MultiHeadAttention.from_torch` makes a layer that has them.
"""

from multihead.torch_compat.attention import MultiheadAttention
from multihead.torch_compat.swap import replace

__all__ = ["MultiheadAttention", "replace"]
