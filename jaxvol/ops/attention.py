"""Attention among the tokens of each example: softmax(q k^T / sqrt(F) + position + mask) v.

Shapes: q, k, v [B, T, N, F] with N heads of F features; `position` a pair of factors ([N, T, R],
[T, R]) whose product is added to the logits; `mask` [n, T, T], added to those of examples 0..n-1,
n..2n-1, ... (n divides B).  One softmax per head and query, in at least float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxvol.types import UserError

Array = jax.Array
PyTree = Any
Factors = tuple[Array, Array]
IMPLEMENTATIONS = ("auto", "matmul", "xla", "cudnn")


def attention(
    q: Array,
    k: Array,
    v: Array,
    position: Factors | None = None,
    mask: Array | None = None,
    implementation: str = "auto",
) -> Array:
    """[B, T, N, F], in q's dtype.

    matmul: matrix products whose backward pass keeps no T x T weights, see `matmul`; the factors of
            `position` are further features of q and k
    xla:    `jax.nn.dot_product_attention`
    cudnn:  the same on NVIDIA GPUs in bfloat16 or float16, which never holds the weights
    auto:   matmul on CPU (about twice as fast there as xla), cudnn where it can be had, else xla
    Raises UserError for an unknown choice, and for cudnn where it cannot be had.
    """
    chosen = choose(implementation, q)
    # a numpy array cannot be indexed within the loop over windows
    mask = None if mask is None else jnp.asarray(mask)
    if chosen == "matmul":
        return matmul(q, k, v, *((None, None) if position is None else position), mask)
    added = None if position is None else product(position)[None]
    if mask is not None:
        mask = jnp.tile(mask, (q.shape[0] // mask.shape[0], 1, 1))[:, None]
        added = mask if added is None else added + mask
    return jax.nn.dot_product_attention(
        q, k, v, bias=None if added is None else added.astype(q.dtype), implementation=chosen
    )


def maps(q: Array, k: Array, position: Factors | None = None, mask: Array | None = None) -> Array:
    """The attention weights themselves, [B, N, T, T] in at least float32; each row sums to 1."""
    q_all, k_all = _features(q, k, *((None, None) if position is None else position))
    scores = jax.vmap(lambda part: _scores(*part, mask))((q_all, k_all, _windows(q, mask)))
    return jax.nn.softmax(scores, -1).reshape(q.shape[0], q.shape[2], q.shape[1], k.shape[1])


def product(position: Factors) -> Array:
    """[N, T, T] from its factors."""
    return jnp.einsum("ntr,sr->nts", *position, precision="highest")


@jax.custom_vjp
def matmul(
    q: Array, k: Array, v: Array, rows: Array | None, columns: Array | None, mask: Array | None
) -> Array:
    """y = P v with P = exp(logits - L), L = log sum exp(logits).

    The backward pass computes P again from L, as FlashAttention does (algorithm 4 of
    arXiv:2205.14135): dv = P^T dy, dlogits = P * (dy v^T - dy . y).  One CPU works head by head,
    whose weights stay in the cache.  Columns and mask are constants, without derivatives.
    """
    return _forward(q, k, v, rows, columns, mask)[0]


def _forward(
    q: Array, k: Array, v: Array, rows: Array | None, columns: Array | None, mask: Array | None
) -> tuple[Array, tuple]:
    wide = jnp.promote_types(q.dtype, jnp.float32)
    q_all, k_all = _features(q, k, rows, columns)

    def one(part: PyTree) -> PyTree:
        q, k, v, window = part
        scores = _scores(q, k, window, mask)
        top = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        return (jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=wide) / total).astype(
            v.dtype
        ), top + jnp.log(total)

    heads = _heads(v)
    y, level = _each(one, (q_all, k_all, heads, _windows(q, mask)))
    return _tokens(y, q), (q, k, heads, q_all, k_all, y, level, rows, columns, mask)


def _backward(saved: tuple, dy: Array) -> tuple:
    q, k, v, q_all, k_all, y, level, rows, columns, mask = saved
    features, wide = v.shape[-1], level.dtype
    scaled_q = q_all[..., :features]

    def one(part: PyTree) -> PyTree:
        q_all, k_all, q, v, y, level, dy, window = part
        weights = jnp.exp(_scores(q_all, k_all, window, mask) - level)
        dscores = jnp.matmul(dy, v.T, preferred_element_type=wide) - (dy.astype(wide) * y).sum(
            -1, keepdims=True
        )
        dscores = (weights * dscores).astype(q.dtype)
        dq = jnp.matmul(dscores, k_all, preferred_element_type=wide)
        return dq, _by_columns(q, dscores), _by_columns(dy, weights.astype(dy.dtype))

    dq, dk, dv = _each(one, (q_all, k_all, scaled_q, v, y, level, _heads(dy), _windows(q, mask)))
    drows = (
        None
        if rows is None
        else dq[..., features:].reshape(q.shape[0], *rows.shape).sum(0).astype(rows.dtype)
    )
    dq = dq[..., :features] * (1 / math.sqrt(features))
    zeros = (None if x is None else jnp.zeros_like(x) for x in (columns, mask))
    return (*(_tokens(x, q).astype(q.dtype) for x in (dq, dk, dv)), drows, *zeros)


matmul.defvjp(_forward, _backward)


def _scores(q: Array, k: Array, window: Array, mask: Array | None) -> Array:
    """Logits [T, T] of one head in at least float32."""
    scores = jnp.matmul(q, k.T, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
    return scores if mask is None else scores + mask[window]


def _by_columns(x: Array, weights: Array) -> Array:
    """weights^T x as (x^T weights)^T, in at least float32: three times as fast on CPU.

    Without the barrier XLA would undo it.
    """
    y = jnp.einsum(
        "tf,ts->fs", x, weights, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32)
    )
    return jax.lax.optimization_barrier(y).T


def _each(function: Callable, parts: PyTree) -> PyTree:
    """`function` of each entry along the first axis.

    One by one on one CPU, at once elsewhere, where devices may share that axis.
    """
    one_cpu = jax.default_backend() == "cpu" and jax.device_count() == 1
    return jax.lax.map(function, parts) if one_cpu else jax.vmap(function)(parts)


def _features(q: Array, k: Array, rows: Array | None, columns: Array | None) -> tuple[Array, Array]:
    """q / sqrt(F) and k, [B N, T, F], or [B N, T, F + R] with the factors of the position."""
    examples = q.shape[0]
    q, k = _heads(q * (1 / math.sqrt(q.shape[-1]))), _heads(k)
    if rows is None:
        return q, k
    rows = jnp.tile(rows.astype(q.dtype), (examples, 1, 1))
    columns = jnp.broadcast_to(columns.astype(k.dtype), (*k.shape[:2], columns.shape[-1]))
    return jnp.concatenate([q, rows], -1), jnp.concatenate([k, columns], -1)


def _heads(x: Array) -> Array:
    """[B, T, N, F] -> [B N, T, F]."""
    return x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3])


def _tokens(x: Array, like: Array) -> Array:
    """[B N, T, F] -> [B, T, N, F]."""
    return x.reshape(like.shape[0], like.shape[2], *x.shape[1:]).swapaxes(1, 2)


def _windows(q: Array, mask: Array | None) -> Array:
    """[B N]: which mask each head of each example has."""
    return (
        jnp.arange(q.shape[0] * q.shape[2]) // q.shape[2] % (1 if mask is None else mask.shape[0])
    )


def choose(implementation: str, q: Array) -> str:
    """matmul, xla or cudnn."""
    if implementation not in IMPLEMENTATIONS:
        raise UserError(
            f"the implementation of attention is {implementation!r}; choose one of "
            f"{', '.join(IMPLEMENTATIONS)}."
        )
    backend, half = jax.default_backend(), q.dtype in (jnp.bfloat16, jnp.float16)
    fused = backend == "gpu" and half and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
    if implementation == "cudnn" and not fused:
        raise UserError(
            f"config.model.attention is 'cudnn', but the backend is {backend}, the precision "
            f"{q.dtype} and a head has {q.shape[-1]} features; expected an NVIDIA GPU, "
            "precision='bf16' and heads of 8, 16, ..., 128 features; use 'auto'."
        )
    if implementation != "auto":
        return implementation
    return "matmul" if backend == "cpu" else "cudnn" if fused else "xla"
