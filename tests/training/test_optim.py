"""The optimizer against closed forms and plain optax: rates, norms, clipping, decay mask,
schedules, plateau, L-BFGS.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvol.config import base
from jaxvol.training import optim, schedules
from jaxvol.types import UserError
from tests import compiler

PARAMS = {
    "kernel": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "bias": np.array([0.5, -2.0, 1.0], np.float32),
}


def settings(**fields):
    """An optimizer config, locked; `a__b=v` sets a.b."""
    config = base.optimizer()
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in fields.items()}
    )
    return config.lock()


def grads_at(step, scale=1.0):
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda p: scale * rng.standard_normal(p.shape).astype(np.float32), PARAMS)


def run(optimizer, steps, params=PARAMS, **extra):
    """Parameters, updates and readings of `steps` jitted updates on the gradients above."""
    state, history = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for t in range(steps):
        updates, state = update(grads_at(t), state, params, **extra)
        params = optax.apply_updates(params, updates)
        history.append(
            (updates, optim.readings(state) if isinstance(state, optim.OptimizerState) else {})
        )
    return params, history


def rates(steps, **fields):
    lr = schedules.schedule(settings(learning_rate=2.0, **fields), steps)
    return np.array(jax.jit(jax.vmap(lr))(jnp.arange(steps + 1)))


CASES = {
    "adamw": (
        dict(adamw__weight_decay=0.1),
        lambda lr, mask: optax.adamw(lr, weight_decay=0.1, mask=mask),
    ),
    "adam": (dict(adam__b1=0.5), lambda lr, mask: optax.adam(lr, b1=0.5)),
    "sgd": (dict(sgd__momentum=0.9, sgd__nesterov=True), lambda lr, mask: optax.sgd(lr, 0.9, True)),
    "lion": (
        dict(lion__weight_decay=0.1),
        lambda lr, mask: optax.lion(lr, b2=0.99, weight_decay=0.1, mask=mask),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_optax_chain(name):
    fields, rule = CASES[name]
    config = settings(
        name=name, learning_rate=0.1, clip_norm=1.0, schedule__warmup_steps=2, **fields
    )
    plain = optax.chain(
        optax.clip_by_global_norm(1.0),
        rule(schedules.schedule(config, 5), {"kernel": True, "bias": False}),
    )
    ours, history = run(optim.make(config, "net", 5), 5)
    theirs, _ = run(plain, 5)
    assert len({float(used["lr"]) for _, used in history}) > 2  # the schedule moved
    for key in PARAMS:
        np.testing.assert_allclose(ours[key], theirs[key], atol=1e-6)


def test_readings_are_the_values_used():
    config = settings(
        name="sgd",
        learning_rate=0.3,
        clip_norm=0.5,
        schedule__name="cosine",
        schedule__warmup_steps=3,
    )
    _, history = run(optim.make(config, "net", 6), 6)
    for t, (updates, used) in enumerate(history):
        norm = np.sqrt(sum((g**2).sum() for g in grads_at(t).values()))
        np.testing.assert_allclose(used["grad_norm"], norm, rtol=1e-6)  # before clipping
        np.testing.assert_allclose(used["clipped_norm"], 0.5, rtol=1e-6)  # after it
        clipped = grads_at(t)["bias"] * 0.5 / norm
        np.testing.assert_allclose(-updates["bias"] / clipped, used["lr"], rtol=1e-5)
        np.testing.assert_allclose(used["update_norm"], 0.5 * used["lr"], rtol=1e-5)
        np.testing.assert_allclose(used["lr"], schedules.schedule(config, 6)(t), rtol=1e-6)
    _, small = run(optim.make(settings(clip_norm=1e3), "net", 6), 1)
    assert small[0][1]["clipped_norm"] == small[0][1]["grad_norm"]
    _, free = run(optim.make(settings(clip_norm=0.0), "net", 6), 1)
    assert free[0][1]["clipped_norm"] == free[0][1]["grad_norm"] > 1


def test_weight_decay_reaches_matrices_only():
    config = settings(
        name="adamw", learning_rate=0.1, schedule__name="constant", adamw__weight_decay=0.5
    )
    optimizer = optim.make(config, "net", 3)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5 * PARAMS["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0.0)


def test_half_precision_gradients_are_normed_and_squared_in_float32():
    params = {"kernel": jnp.zeros((64, 64))}
    # its square is no bfloat16 number
    grads = {"kernel": jnp.full((64, 64), 1.0078125, jnp.bfloat16)}
    optimizer = optim.make(settings(clip_norm=0.0), "net", 3)
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(optim.readings(state)["grad_norm"], 64 * 1.0078125, rtol=1e-6)
    np.testing.assert_allclose(
        optax.tree.get(state, "nu")["kernel"], 0.001 * 1.0078125**2, rtol=1e-5
    )
    assert updates["kernel"].dtype == jnp.float32


def test_float64_stays_float64_and_the_state_keeps_its_types():
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), PARAMS)
        for config in (
            settings(),
            settings(schedule__name="plateau"),
            settings(name="lbfgs", clip_norm=0.0),
            settings(name="broyden", clip_norm=0.0),
        ):
            optimizer = optim.make(config, "net", 3)
            before = jax.eval_shape(optimizer.init, params)
            monitor = {"value": jnp.float32(1), "count": jnp.int32(1)}
            updates, after = jax.eval_shape(
                lambda s, p, o=optimizer, m=monitor: o.update(
                    p, s, p, value=jnp.float64(1), grad=p, value_fn=optax.tree.sum, monitor=m
                ),
                before,
                params,
            )
            assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(
                lambda x: (x.shape, x.dtype), after
            )
            assert all(u.dtype == jnp.float64 for u in jax.tree.leaves(updates))


@pytest.mark.parametrize("name", base.RULES)
def test_the_second_step_takes_what_the_first_one_took(name):
    """Shapes and types of the state, weak ones included, or the train step is compiled twice."""
    params = {"x": jnp.ones((3, 2)), "y": jnp.ones(2)}
    optimizer, f = (
        optim.make(settings(name=name, clip_norm=0.0), "net", 3),
        lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p)),
    )
    first = jax.eval_shape(optimizer.init, params)
    _, second = jax.eval_shape(
        lambda s: optimizer.update(
            params,
            s,
            params,
            value=f(params),
            grad=params,
            value_fn=f,
            monitor={"value": jnp.float32(1), "count": jnp.int32(0)},
        ),
        first,
    )
    kinds = lambda state: jax.tree.map(lambda x: (x.shape, str(x.dtype), x.weak_type), state)
    assert kinds(first) == kinds(second)


def test_groups_override_their_own_fields_only():
    config = base.optimizer()
    config.groups = {
        "disc": {
            "learning_rate": 5,
            "clip_norm": 0.0,
            "schedule": {"name": "constant"},
            "name": "sgd",
        }
    }
    config.lock()
    _, disc = run(optim.make(config, "disc", 10), 3)
    _, gen = run(optim.make(config, "gen", 10), 3)
    assert [float(used["lr"]) for _, used in disc] == [5.0] * 3
    assert float(gen[0][1]["lr"]) == pytest.approx(1e-3) and float(gen[2][1]["lr"]) < 1e-3
    assert (
        float(gen[0][1]["clipped_norm"]) == pytest.approx(1.0)
        and float(disc[0][1]["clipped_norm"]) > 1
    )
    assert config.learning_rate == 1e-3


@pytest.mark.parametrize(
    "fields, names",
    [
        (dict(name="adan"), "adamw, adam, sgd, lion, lbfgs, broyden"),
        (
            dict(schedule__name="cosin"),
            "constant, cosine, exponential, step, onecycle, cyclic, plateau",
        ),
        (dict(name="lbfgs", clip_norm=1.0), "clip_norm=0"),
        (dict(name="broyden", clip_norm=1.0), "clip_norm=0"),
        (dict(groups={"net": {"learning_rat": 1.0}}), "learning_rate"),
        (dict(groups={"net": {"schedule": {"warmup": 3}}}), "warmup_steps"),
        (dict(groups={"net": {"learning_rate": "fast"}}), "float"),
    ],
)
def test_mistakes_name_what_is_known(fields, names):
    config = base.optimizer()
    with config.unlocked():
        config.groups = fields.pop("groups", {})
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in fields.items()}
    )
    with pytest.raises(UserError, match=names):
        optim.make(config, "net", 10)


def test_sharded_parameters_give_the_same_update():
    mesh = jax.make_mesh(
        (2,), ("fsdp",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,)
    )
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    one = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    where = {"kernel": rows, "bias": one}
    optimizer = optim.make(settings(learning_rate=0.1, clip_norm=0.5), "net", 3)
    plain, _ = optimizer.update(grads_at(0), optimizer.init(PARAMS), PARAMS)
    params, grads = jax.device_put(PARAMS, where), jax.device_put(grads_at(0), where)
    updates, state = jax.jit(optimizer.update)(grads, jax.jit(optimizer.init)(params), params)
    for key in PARAMS:
        np.testing.assert_allclose(updates[key], plain[key], rtol=1e-5)
    assert updates["kernel"].sharding.is_equivalent_to(rows, 2)


def test_a_waiting_group_is_moved_by_its_own_steps_alone():
    """delay=2, every=3: the updates at steps 2, 5, 8 and 11 of 12 are those of a run of four steps;
    in between nothing ticks.
    """
    fields = dict(
        name="adamw", learning_rate=0.1, schedule__name="cosine", schedule__warmup_steps=1
    )
    waiting, plain = (
        optim.make(settings(every=3, delay=2, **fields), "net", 12),
        optim.make(settings(**fields), "net", 4),
    )
    params, state = PARAMS, waiting.init(PARAMS)
    theirs, expected, moved = PARAMS, plain.init(PARAMS), 0
    update, reference = (
        jax.jit(optimizer.update, compiler_options=compiler.usual())
        for optimizer in (waiting, plain)
    )
    for t in range(12):
        updates, state = update(grads_at(t), state, params)
        params = optax.apply_updates(params, updates)
        used = optim.readings(state)
        if t in (2, 5, 8, 11):
            updates, expected = reference(grads_at(t), expected, theirs)
            theirs, moved = optax.apply_updates(theirs, updates), moved + 1
            assert used["lr"] == optim.readings(expected)["lr"] > 0 and used["update_norm"] > 0
        else:
            assert used["lr"] == 0 == used["update_norm"] and used["clipped_norm"] > 0
        norm = np.sqrt(sum((g**2).sum() for g in grads_at(t).values()))
        np.testing.assert_allclose(used["grad_norm"], norm, rtol=1e-5)
        np.testing.assert_allclose(
            used["clipped_fraction"], 1 - used["clipped_norm"] / norm, rtol=1e-5
        )
        jax.tree.map(np.testing.assert_array_equal, (params, state.inner), (theirs, expected))
        assert int(optim.skipped(state)) == t + 1 - moved
    assert optim.skipped(expected) == 0
