"""Floating-point operations of a program, counted in its jaxpr.

XLA's own count takes a loop's body once, however often it runs.  What is counted are the products,
for which devices state their peak; what acts on single elements is left out.

    dot_general            2 per product of numbers (complex: 8)
    conv_general_dilated   the same; products with padding, and with the zeros between dilated
                           elements, are no operations
    fft                    5 n log2 n, of or to real numbers half of that

A scan counts its length times, shard_map once per device, cond as its dearest branch, and
everything that is called (jit, checkpoint, custom derivatives) as what it contains.  A while loop
counts ONCE, as its turns are not known: the line searches of quasi-Newton methods (`fori_loop`
between constants is a scan).  What no output needs is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxprs_in_params
from jax.interpreters import partial_eval


def count(function: Callable, *arguments: Any) -> float:
    """Operations of one call, on all devices together.

    The arguments are (pytrees of) arrays or ShapeDtypeStructs.
    """
    return total(jax.make_jaxpr(function)(*arguments))


def total(program: Any) -> float:
    """Operations of what was traced: the `.jaxpr` of `jax.jit(function).trace(*arguments)`."""
    return inside(partial_eval.dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars))[0])


def inside(jaxpr: Any) -> float:
    """Operations of a jaxpr."""
    return sum(map(equation, jaxpr.eqns))


def equation(eqn: Any) -> float:
    """Operations of one equation."""
    given = eqn.params
    match eqn.primitive.name:
        case "dot_general":
            (contracted, _), _ = given["dimension_numbers"]
            lengths = (eqn.invars[0].aval.shape[i] for i in contracted)
            return per_product(eqn) * eqn.outvars[0].aval.size * math.prod(lengths)
        case "conv_general_dilated":
            return per_product(eqn) * products(eqn)
        case "fft":
            n = math.prod(given["fft_lengths"])
            real = any(not is_complex(v) for v in (*eqn.invars, *eqn.outvars))
            batch = math.prod(eqn.invars[0].aval.shape[: -len(given["fft_lengths"])])
            return (2.5 if real else 5.0) * n * math.log2(n) * batch
    parts = [inside(jaxpr) for jaxpr in jaxprs_in_params(given)]
    match eqn.primitive.name:
        case "cond":
            return max(parts)
        case "scan":
            return given["length"] * sum(parts)
        case "shard_map":
            return math.prod(
                given["mesh"].shape[axis] for axis in given["newly_manual_axes"]
            ) * sum(parts)
    return sum(parts)


def is_complex(v: Any) -> bool:
    return np.issubdtype(v.aval.dtype, np.complexfloating)


def per_product(eqn: Any) -> float:
    """Operations of a product and its sum.

    Both factors of a complex product are complex in a jaxpr.
    """
    return 8.0 if is_complex(eqn.outvars[0]) else 2.0


def products(eqn: Any) -> int:
    """Products of a convolution.

    Per axis the pairs (output, tap) that meet an element of the input, times batch and channels.
    With o an output, k a tap, p = stride o + rhs_dilation k - padding lies on an element if 0 <= p
    and lhs_dilation divides p.
    """
    given, (x, kernel, y) = eqn.params, (v.aval.shape for v in (*eqn.invars, *eqn.outvars))
    spec, pairs = given["dimension_numbers"], 1
    for i, (at_x, at_kernel, at_y) in enumerate(
        zip(spec.lhs_spec[2:], spec.rhs_spec[2:], spec.out_spec[2:])
    ):
        stretch = given["lhs_dilation"][i]
        p = (
            given["window_strides"][i] * np.arange(y[at_y])[:, None]
            + given["rhs_dilation"][i] * np.arange(kernel[at_kernel])
            - given["padding"][i][0]
        )
        pairs *= int(np.sum((p >= 0) & (p % stretch == 0) & (p <= stretch * (x[at_x] - 1))))
    return y[spec.out_spec[0]] * y[spec.out_spec[1]] * kernel[spec.rhs_spec[1]] * pairs
