"""Exact attention inside each of many short texts, on a GPU.

Kernels for long sequences give each text tiles of 64 rows or more, and their backward adds in float32 to 128 rows more
than a text has. A caption has some 16 tokens. Backward adds nothing atomically, so that it gives the same numbers
each time.

Reference: FlashAttention-2 (arXiv 2307.08691), section 2.3, for the tiled softmax and its backward.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE, WARPS = 16, 1  # tokens that are looked at together, as queries and as keys: a caption; tensor cores take no less


@triton.jit
def _bounds(query_ends, key_ends, text):
    """First row of a text's queries and of its keys, and how many there are of each."""
    first, first_key = tl.load(query_ends + text), tl.load(key_ends + text)
    return first, first_key, tl.load(query_ends + text + 1) - first, tl.load(key_ends + text + 1) - first_key


@triton.jit
def _tile(pointer, first, begin, count, head, stride, width: tl.constexpr, tile: tl.constexpr):
    """Pointers to rows `begin`... of a text whose `count` rows start at `first`, and which of them there are."""
    rows = begin + tl.arange(0, tile)[:, None]
    columns = tl.arange(0, triton.next_power_of_2(width) if width > 16 else 16)[None, :]
    return pointer + (first + rows).to(tl.int64) * stride + head * width + columns, (rows < count) & (columns < width)


@triton.jit
def _load(pointer, first, begin, count, head, stride, width: tl.constexpr, tile: tl.constexpr):
    """(tile, width), zeros where there is nothing."""
    place, there = _tile(pointer, first, begin, count, head, stride, width, tile)
    return tl.load(place, mask=there, other=0.0)


@triton.jit
def _store(pointer, first, begin, count, head, stride, values, width: tl.constexpr, tile: tl.constexpr):
    place, there = _tile(pointer, first, begin, count, head, stride, width, tile)
    tl.store(place, values.to(pointer.dtype.element_ty), mask=there)


@triton.jit
def _scores(query, key, query_begin, key_begin, keys, scale, causal: tl.constexpr, tile: tl.constexpr):
    """(tile, tile) float32; -inf where a query may not look. Rows beyond the last query are harmless."""
    rows = query_begin + tl.arange(0, tile)[:, None]
    columns = key_begin + tl.arange(0, tile)[None, :]
    seen = (columns < keys) & (columns <= rows) if causal else columns < keys
    return tl.where(seen, tl.dot(query, tl.trans(key), input_precision="ieee") * scale, float("-inf"))


@triton.jit
def _forward(
    q, k, v, out, lse, query_ends, key_ends, q_stride, k_stride, v_stride, out_stride, scale,
    heads: tl.constexpr, width: tl.constexpr, causal: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """Output and log-sum-exp of one tile of queries of one text and head."""
    text, head, begin = tl.program_id(0), tl.program_id(1), tl.program_id(2) * tile
    first, first_key, queries, keys = _bounds(query_ends, key_ends, text)
    if begin < queries:
        query = _load(q, first, begin, queries, head, q_stride, width, tile)
        maximum = tl.full((tile,), float("-inf"), tl.float32)
        total = tl.zeros((tile,), tl.float32)
        sums = tl.zeros((tile, query.shape[1]), tl.float32)
        for key_begin in range(0, min(keys, begin + tile) if causal else keys, tile):
            key = _load(k, first_key, key_begin, keys, head, k_stride, width, tile)
            value = _load(v, first_key, key_begin, keys, head, v_stride, width, tile)
            scores = _scores(query, key, begin, key_begin, keys, scale, causal, tile)
            higher = tl.maximum(maximum, tl.max(scores, 1))
            weights, shrink = tl.exp(scores - higher[:, None]), tl.exp(maximum - higher)
            total = total * shrink + tl.sum(weights, 1)
            sums = sums * shrink[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
            maximum = higher
        _store(out, first, begin, queries, head, out_stride, sums / total[:, None], width, tile)
        rows = begin + tl.arange(0, tile)
        tl.store(lse + (first + rows) * heads + head, maximum + tl.log(total), mask=rows < queries)


@triton.jit
def _queries_of(
    q, out, lse, grad_out, first, begin, queries, head, q_stride, out_stride,
    heads: tl.constexpr, width: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """What backward needs of a tile of queries: themselves, the gradient of their output, log-sum-exp, and the mean of
    the gradient of their weights, which is the product of output and its gradient."""
    query = _load(q, first, begin, queries, head, q_stride, width, tile)
    grad = _load(grad_out, first, begin, queries, head, out_stride, width, tile)
    attended = _load(out, first, begin, queries, head, out_stride, width, tile)
    rows = begin + tl.arange(0, tile)
    its_lse = tl.load(lse + (first + rows) * heads + head, mask=rows < queries, other=0.0)
    return query, grad, its_lse, tl.sum(grad.to(tl.float32) * attended.to(tl.float32), 1)


@triton.jit
def _weights_and_gradient(
    query, key, value, grad, lse, mean, begin, key_begin, keys, scale, causal: tl.constexpr, tile: tl.constexpr
):
    """Softmax weights of a tile, and the gradient of its scores before they are scaled."""
    weights = tl.exp(_scores(query, key, begin, key_begin, keys, scale, causal, tile) - lse[:, None])
    gradient = tl.dot(grad, tl.trans(value), input_precision="ieee") - mean[:, None]
    return weights, weights * gradient * scale


@triton.jit
def _backward_queries(
    q, k, v, out, lse, grad_out, grad_q, query_ends, key_ends, q_stride, k_stride, v_stride, out_stride, scale,
    heads: tl.constexpr, width: tl.constexpr, causal: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """Gradient of one tile of queries of one text and head."""
    text, head, begin = tl.program_id(0), tl.program_id(1), tl.program_id(2) * tile
    first, first_key, queries, keys = _bounds(query_ends, key_ends, text)
    if begin < queries:
        query, grad, its_lse, mean = _queries_of(
            q, out, lse, grad_out, first, begin, queries, head, q_stride, out_stride, heads, width, tile
        )
        sums = tl.zeros((tile, query.shape[1]), tl.float32)
        for key_begin in range(0, min(keys, begin + tile) if causal else keys, tile):
            key = _load(k, first_key, key_begin, keys, head, k_stride, width, tile)
            value = _load(v, first_key, key_begin, keys, head, v_stride, width, tile)
            _, gradient = _weights_and_gradient(
                query, key, value, grad, its_lse, mean, begin, key_begin, keys, scale, causal, tile
            )
            sums += tl.dot(gradient.to(key.dtype), key, input_precision="ieee")
        _store(grad_q, first, begin, queries, head, heads * width, sums, width, tile)


@triton.jit
def _backward_keys(
    q, k, v, out, lse, grad_out, grad_k, grad_v, query_ends, key_ends, q_stride, k_stride, v_stride, out_stride, scale,
    heads: tl.constexpr, width: tl.constexpr, causal: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of keys and values of one text and head."""
    text, head, key_begin = tl.program_id(0), tl.program_id(1), tl.program_id(2) * tile
    first, first_key, queries, keys = _bounds(query_ends, key_ends, text)
    if key_begin < keys:
        key = _load(k, first_key, key_begin, keys, head, k_stride, width, tile)
        value = _load(v, first_key, key_begin, keys, head, v_stride, width, tile)
        key_sums = tl.zeros((tile, key.shape[1]), tl.float32)
        value_sums = tl.zeros((tile, key.shape[1]), tl.float32)
        for begin in range(key_begin if causal else 0, queries, tile):
            query, grad, its_lse, mean = _queries_of(
                q, out, lse, grad_out, first, begin, queries, head, q_stride, out_stride, heads, width, tile
            )
            weights, gradient = _weights_and_gradient(
                query, key, value, grad, its_lse, mean, begin, key_begin, keys, scale, causal, tile
            )
            value_sums += tl.dot(tl.trans(weights.to(grad.dtype)), grad, input_precision="ieee")
            key_sums += tl.dot(tl.trans(gradient.to(query.dtype)), query, input_precision="ieee")
        _store(grad_k, first_key, key_begin, keys, head, heads * width, key_sums, width, tile)
        _store(grad_v, first_key, key_begin, keys, head, heads * width, value_sums, width, tile)


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, ends: tuple[Tensor, Tensor], longest: tuple[int, int], causal: bool
    ) -> Tensor:
        q, k, v = (part if part.stride()[1:] == (part.shape[2], 1) else part.contiguous() for part in (q, k, v))
        rows, heads, width = q.shape
        out, lse = q.new_empty(rows, heads, width), q.new_empty(rows, heads, dtype=torch.float32)
        strides = (q.stride(0), k.stride(0), v.stride(0), out.stride(0))
        shape = {"heads": heads, "width": width, "causal": causal, "tile": TILE, "num_warps": WARPS}
        grid = len(ends[0]) - 1, heads, triton.cdiv(longest[0], TILE)
        with torch.cuda.device_of(q):
            _forward[grid](q, k, v, out, lse, *ends, *strides, width**-0.5, **shape)
        ctx.save_for_backward(q, k, v, out, lse, *ends)
        ctx.strides, ctx.shape, ctx.longest = strides, shape, longest
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, *ends = ctx.saved_tensors
        grad_out = grad_outputs[0].contiguous()
        grad_q, grad_k, grad_v = (torch.empty(part.shape, dtype=part.dtype, device=part.device) for part in (q, k, v))
        texts, heads = len(ends[0]) - 1, q.shape[1]
        shared = (*ends, *ctx.strides, q.shape[2] ** -0.5)
        grids = [(texts, heads, triton.cdiv(longest, TILE)) for longest in ctx.longest]
        with torch.cuda.device_of(q):
            _backward_queries[grids[0]](q, k, v, out, lse, grad_out, grad_q, *shared, **ctx.shape)
            _backward_keys[grids[1]](q, k, v, out, lse, grad_out, grad_k, grad_v, *shared, **ctx.shape)
        return grad_q, grad_k, grad_v, None, None, None


def short_attention(
    query: Tensor, key: Tensor, value: Tensor, *, ends: tuple[Tensor, Tensor], longest: tuple[int, int], causal: bool
) -> Tensor:
    """Softmax attention inside each text: (T, H, W/H) each -> (T, H, W/H).

    `ends` of the queries and of the keys are int32, (B + 1,): rows where texts end, from 0. `longest` are the lengths
    of the longest of each. A causal query sees keys of its own place and before.
    """
    return _ShortAttention.apply(query, key, value, ends, longest, causal)
