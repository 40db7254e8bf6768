"""Every model and the GAN, as they are trained: eight devices equal one, restarts change no bit."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvol.config import base, components
from jaxvol.diagnostics import context
from jaxvol.training import assemble, sharding
from jaxvol.training import step as stepping
from tests.training.test_distributed import BATCH, QUICK, boxes, deviation, make_mesh, spec

CASES = {
    "fno": {"width": 8, "layers": 1, "modes": (4, 4, 4), "factorization": "tucker", "rank": 0.3},
    "vnet": {"widths": (8, 16)},
    "vnet-original": {"layout": "original", "widths": (8, 16), "norm": "batch"},
    "vit3d": {
        "patch": (4, 4, 4),
        "width": 16,
        "layers": 1,
        "heads": 2,
        "head_features": 8,
        "stem_width": 8,
    },
    "vit3d-windows": {
        "patch": (2, 2, 2),
        "width": 16,
        "layers": 2,
        "heads": 2,
        "head_features": 8,
        "stem_width": 8,
        "window": 4,
    },
    "pix2pixcc": {"width": 8, "downs": 1, "blocks": 1, "norm": "group"},
}


def config(case: str):
    """SGD with momentum at a rate that moves every leaf.

    The GAN's discriminator has one scale and spectral norm.
    """
    name = case.split("-")[0]
    chosen = base.common()
    chosen.model, chosen.task, chosen.data = (
        base.model(name),
        base.task("regression"),
        base.data("cosmology"),
    )
    for field, value in CASES[case].items():
        chosen.model[field] = value
    if name == "pix2pixcc":
        chosen.task = base.task("adversarial")
        critic = chosen.task.discriminator
        critic.width, critic.scales, critic.strides, critic.norm, critic.spectral_norm = (
            8,
            1,
            (2, 2, 1),
            "none",
            True,
        )
    chosen.optimizer.name, chosen.optimizer.sgd.momentum, chosen.optimizer.clip_norm = (
        "sgd",
        0.9,
        0.0,
    )
    chosen.optimizer.learning_rate, chosen.optimizer.schedule.name = 0.01, "constant"
    chosen.batch_size, chosen.ema_decay = BATCH, 0.9
    return chosen.lock()


def first_update(case: str, sizes: tuple[int, int, int]):
    """State and metrics after one update on a mesh, on the host; the model sees as many devices as
    the mesh has.
    """
    chosen, mesh = config(case), make_mesh(sizes)
    with jax.set_mesh(mesh), mock.patch.object(jax, "device_count", lambda: mesh.size):
        init, struct = assemble.state_template(chosen, spec(), 10, mesh)
        task, shardings = (
            components.task(chosen, spec()),
            jax.tree.map(lambda s: s.sharding, struct),
        )
        update = stepping.make(
            task,
            assemble.make_optimizers(chosen, struct.params, 10),
            chosen.seed,
            chosen.ema_decay,
            1,
        )
        state = jax.jit(init, out_shardings=shardings, compiler_options=QUICK)()
        step = jax.jit(
            update, out_shardings=(shardings, sharding.replicated(mesh)), compiler_options=QUICK
        )
        return jax.device_get(step(state, sharding.put(mesh, boxes(0), BATCH), jnp.int32(0)))


SLOW = ("vit3d-windows", "vnet-original", "pix2pixcc")  # minutes of compilation together
VARIED = [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES]


@pytest.mark.parametrize("case", VARIED[1:])
def test_eight_devices_equal_one(case):
    one, metrics = first_update(case, (1, 1, 1))
    many, found = first_update(case, (2, 2, 2))
    momentum = [
        optax.tree_utils.tree_get(s.opt, "trace")
        if len(s.opt) == 1
        else {g: optax.tree_utils.tree_get(o, "trace") for g, o in s.opt.items()}
        for s in (many, one)
    ]
    # a bias in front of a normalisation has no gradient but rounding errors
    assert (
        deviation(
            {n: v for n, v in found.items() if n.endswith("loss")},
            {n: v for n, v in metrics.items() if n.endswith("loss")},
        )
        < 1e-5
    )
    assert whole(momentum[0], momentum[1]) < 1e-5
    assert whole(many.extra["stats"], one.extra["stats"]) < 1e-5


def whole(tree, expected) -> float:
    """Largest difference of a leaf, relative to its size.

    The size is at least a thousandth of the largest leaf's.
    """
    leaves = [
        (np.asarray(a), np.asarray(b))
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True)
    ]
    top = max((np.abs(b).max() for _, b in leaves), default=1.0)
    return max(
        (float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3 * top)) for a, b in leaves),
        default=0.0,
    )


@pytest.mark.parametrize("case", VARIED)
def test_a_restart_changes_no_bit(case):
    """Two updates, a checkpoint on disk, two more: as four in a row; and every
    parameter has moved.
    """
    chosen, mesh = config(case), make_mesh((1, 1, 1))
    with jax.set_mesh(mesh):
        init, struct = assemble.state_template(chosen, spec(), 10, mesh)
        update = stepping.make(
            components.task(chosen, spec()),
            assemble.make_optimizers(chosen, struct.params, 10),
            0,
            0.9,
            1,
        )
        step = jax.jit(update, compiler_options=QUICK)
        start = state = jax.jit(init, compiler_options=QUICK)()
        for number in range(4):
            if number == 2:
                saved = context.save_restore(state)
            state, _ = step(state, boxes(number), jnp.int32(number))
        for number in (2, 3):
            saved, _ = step(saved, boxes(number), jnp.int32(number))
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(saved), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(
        (a != b).any() for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(start.params))
    )
