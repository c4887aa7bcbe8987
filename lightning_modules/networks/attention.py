"""Attention over rows that lie end to end: no token is computed for padding, no row sees another.

Registered with transformers' AttentionInterface under the name "unpadded"; the layout of the rows reaches it as
keyword arguments of the model's forward (`layout(batch)`).
"""

from __future__ import annotations

import inspect

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from datamodules.batch import TokenBatch

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None
if varlen_attn is not None and not {"scale", "window_size"} <= set(inspect.signature(varlen_attn).parameters):
    varlen_attn = None  # an earlier torch, whose function takes neither

NAME = "unpadded"


def layout(batch: TokenBatch) -> dict[str, object]:
    """What `unpadded_attention` must know of a batch, as keyword arguments for the model."""
    return {
        "cu_seqlens": batch.cu_seqlens,
        "max_seqlen": batch.max_seqlen,
        "flat_index": batch.flat_index,
        "pad_mask": batch.pad_mask,
    }


def unpadded_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    flat_index: Tensor | None = None,
    pad_mask: Tensor | None = None,
    **options: object,
) -> tuple[Tensor, None]:
    """Attention of a flat batch.

    Args:
        query, key, value: [1, heads, T, head_dim].
        cu_seqlens, max_seqlen, flat_index, pad_mask: of `TokenBatch`. Without them this is an ordinary padded
            batch (generation, a stock call) and goes to transformers' own sdpa.

    Returns:
        [1, T, heads, head_dim] and None (no attention weights).
    """
    if cu_seqlens is None:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            **options,
        )
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    # [T, heads, head_dim]
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if _flash(q, dropout):
        window = (-1, 0) if causal else (-1, -1)
        q, k, v = (x.contiguous() for x in (q, k, v))
        out = varlen_attn(
            q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, scale=scaling, window_size=window
        )
        return out[None], None
    rows, longest = pad_mask.shape
    heads, width = q.shape[1:]

    def pad(x: Tensor) -> Tensor:
        padded = x.new_zeros(rows * longest, heads, width).index_copy(0, flat_index, x)
        return padded.view(rows, longest, heads, width).transpose(1, 2)

    mask = pad_mask[:, None, None, :]
    if causal:
        mask = mask & torch.ones(longest, longest, dtype=torch.bool, device=mask.device).tril()
    out = F.scaled_dot_product_attention(
        pad(q), pad(k), pad(v), attn_mask=mask, dropout_p=dropout, scale=scaling
    )
    return out.transpose(1, 2).reshape(rows * longest, heads, width).index_select(0, flat_index)[None], None


def _flash(query: Tensor, dropout: float) -> bool:
    """Flash varlen needs CUDA, half precision, compute capability 8.0, a head of 8, 16, ... 256, and has no dropout.

    Everything else pads around sdpa.
    """
    return (
        query.is_cuda
        and not dropout
        and varlen_attn is not None
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


AttentionInterface.register(NAME, unpadded_attention)
