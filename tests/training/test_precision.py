"""Half and double precision: what they keep, what they learn, what they compute."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxvol.config import components
from jaxvol.training import assemble
from jaxvol.types import Fixed
from tests.training.test_distributed import (
    BLOCK,
    ONE,
    QUICK,
    abstract,
    boxes,
    config,
    make_mesh,
    program,
    spec,
    trained,
)


def kept_for_backward(precision: str) -> int:
    """Bytes of the volumes that the pullback of the loss holds, at 32^3, width 20, eight modes,
    batch 2.
    """
    chosen = config(precision=precision, batch_size=2, model__width=20, model__modes=(8, 8, 8))
    task, state, batch = abstract(chosen, make_mesh(ONE), 32)

    def pullback(params, extra, batch):
        fixed = Fixed(jnp.int32(0), jnp.int32(0), extra, None)
        return jax.vjp(
            lambda p: task.loss(p, fixed, batch, jax.random.key(0))[0]["net"]["mse"], params
        )[1]

    leaves = jax.tree.leaves(jax.eval_shape(pullback, state.params, state.extra, batch))
    weights = {leaf.shape for leaf in jax.tree.leaves(state.params)}
    return sum(
        leaf.size * leaf.dtype.itemsize
        for leaf in leaves
        if leaf.size >= 2 * 32**3 and leaf.shape not in weights
    )


def test_bfloat16_memory():
    """What is kept for the backward pass, on any device; and the compiler's number for the whole
    step on a single CPU.

    Eight boxes, because with two the update of the weights, which stay float32, needs more room
    than the gradient did.
    Compiled for several CPU devices bfloat16 saves nothing: XLA ignores jax.checkpoint there and
    widens what it stores.
    """
    assert kept_for_backward("bf16") <= 0.7 * kept_for_backward("f32")
    shape = {**BLOCK, "batch_size": 8, "model__width": 20, "model__modes": (8, 8, 8)}
    memory = [
        program(ONE, 32, precision=p, **shape)[2].memory_analysis().temp_size_in_bytes
        for p in ("bf16", "f32")
    ]
    assert memory[0] <= 0.7 * memory[1]


def test_bfloat16_trains_as_well():
    """Validation loss after 60 steps within 2 % of float32; parameters, averages and all that is
    reported stay float32.
    """

    def run(precision):
        metrics, state = trained(
            60, ONE, 8, **BLOCK, precision=precision, optimizer__learning_rate=3e-3
        )[-1]
        task = components.task(
            config(**BLOCK, precision=precision, task__metrics=("vrmse",)), spec(8)
        )
        rows = jax.jit(task.evaluate, compiler_options=QUICK)(
            state.averages["ema"]["params"],
            {"stats": state.averages["ema"]["stats"]},
            boxes(100, 8),
            jax.random.key(0),
        )
        found = jax.tree.leaves((metrics, state, rows))
        assert {leaf.dtype for leaf in found if jnp.issubdtype(leaf.dtype, jnp.inexact)} == {
            np.dtype(np.float32)
        }
        return float(rows["loss"].mean()), float(rows["vrmse"].mean())

    low, full = run("bf16"), run("f32")
    assert low[0] != full[0] and abs(low[0] / full[0] - 1) < 0.02 and full[1] < 0.8


def test_float64():
    """Parameters, moments, averages and losses in float64, and a gradient that central differences
    confirm to six digits.
    """
    with jax.enable_x64(True):
        chosen, mesh = (
            config(precision="f64", model__layers=2, model__modes=(2, 2, 2)),
            make_mesh(ONE),
        )
        init, state = assemble.state_template(chosen, spec(8), 1000, mesh)
        assert {s.dtype for s in jax.tree.leaves((state.params, state.averages["ema"]))} == {
            np.dtype(np.float64)
        }
        task, _, _ = abstract(chosen, mesh, 8)
        now, batch = (
            jax.jit(init, compiler_options=QUICK)(),
            {name: x.astype(np.float64) for name, x in boxes(0, 8).items()},
        )
        assert jax.tree.map(lambda x: x.dtype, now) == jax.tree.map(lambda s: s.dtype, state)

        def loss(params):
            return task.loss(
                params, Fixed(now.step, now.step, now.extra, now.averages), batch, jax.random.key(0)
            )[0]["net"]["mse"]

        rng = np.random.default_rng(1)
        along = jax.tree.map(lambda p: rng.normal(size=p.shape), now.params)
        length = np.sqrt(sum((a**2).sum() for a in jax.tree.leaves(along)))
        both = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)
        value, grads = both(now.params)
        ahead, behind = (
            both(jax.tree.map(lambda p, a, h=h: p + h / length * a, now.params, along))[0]
            for h in (1e-4, -1e-4)
        )
        slope = sum(
            jax.tree.leaves(jax.tree.map(lambda g, a: jnp.vdot(g, a / length), grads, along))
        )
        assert value.dtype == slope.dtype == np.float64
        np.testing.assert_allclose((ahead - behind) / 2e-4, slope, rtol=1e-6)
