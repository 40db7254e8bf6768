"""Eight devices give what one gives, nothing gathers a field, precisions keep their promises: the
real FNO, task and step.
"""

import functools
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from jaxvol.config import base, components
from jaxvol.training import assemble, sharding
from jaxvol.training import step as stepping
from jaxvol.types import Field, Spec

ONE, MESHES = (1, 1, 1), [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]  # data, fsdp, space
SIZE, BATCH, WIDTH = 16, 8, 8
BLOCK = {"model__layers": 1, "model__activate_last": True}
SGD = {
    **BLOCK,
    "optimizer__name": "sgd",
    "optimizer__sgd__momentum": 0.9,
    "optimizer__clip_norm": 0.0,
    "optimizer__learning_rate": 0.1,
}
PLAIN = {
    f"model__{name}": 0.0 for name in ("lifting_ratio", "projection_ratio", "channel_mlp_ratio")
} | {"model__layers": 1}
# Half the compile time, with the same division over devices; and bfloat16 is rounded wherever the
# program says so.
QUICK = {"xla_backend_optimization_level": 0, "xla_allow_excess_precision": False}
COLLECTIVE = re.compile(
    r"= (\S.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)


def spec(size: int = SIZE) -> Spec:
    return Spec(
        fields={"input": Field(("x",)), "target": Field(("y",))},
        shape=(size,) * 3,
        spacing=(4.0,) * 3,
        unit="Mpc/h",
        periodic=(True,) * 3,
        wrap=(True,) * 3,
    )


def config(**overrides) -> ConfigDict:
    """Two blocks on 16^3, AdamW, gradients clipped to norm 1; dots of overrides are written __."""
    chosen = base.common()
    chosen.model, chosen.task, chosen.data = (
        base.model("fno"),
        base.task("regression"),
        ConfigDict({"name": "none"}),
    )
    chosen.model.width, chosen.model.layers, chosen.model.modes = WIDTH, 2, (4, 4, 4)
    chosen.batch_size, chosen.ema_decay, chosen.optimizer.schedule.name = BATCH, 0.9, "constant"
    chosen.update_from_flattened_dict({k.replace("__", "."): v for k, v in overrides.items()})
    return chosen.lock()


@functools.cache
def boxes(seed: int, size: int = SIZE) -> dict[str, np.ndarray]:
    """Smooth fields as targets, a biased and noisy view of them as inputs."""
    noise = np.random.default_rng(seed).normal(size=(2, BATCH, size, size, size, 1))
    k = np.sqrt(
        sum(i**2 for i in np.meshgrid(*[np.fft.fftfreq(size, 1 / size)] * 3, indexing="ij"))
    )[None, ..., None]
    field = np.fft.ifftn(
        np.fft.fftn(noise[0], axes=(1, 2, 3)) * np.exp(-(k**2) / 16), axes=(1, 2, 3)
    ).real
    field /= field.std()
    return {
        "input": (field + 0.3 * field**2 + 0.3 * noise[1]).astype(np.float32),
        "target": field.astype(np.float32),
    }


def make_mesh(sizes: tuple[int, int, int]):
    return sharding.make_mesh(
        ConfigDict(dict(zip(sharding.AXES, sizes))), jax.devices()[: int(np.prod(sizes))]
    )


def abstract(chosen: ConfigDict, mesh, size: int):
    """(task, state, batch) as the compiler sees them."""
    _, state = assemble.state_template(chosen, spec(size), chosen.total_steps, mesh)
    batch = {
        name: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding.batch_sharding(mesh, s.ndim))
        for name, s in components.example(chosen, spec(size), chosen.batch_size).items()
    }
    return components.task(chosen, spec(size)), state, batch


@functools.cache
def program(sizes=ONE, size: int = SIZE, **overrides):
    """(state as the compiler sees it, mesh, the whole training step compiled as the train loop does
    it).

    The model sees as many devices as the mesh has: a CPU that is alone works by other means than
    one of several.
    """
    chosen, mesh = config(**overrides), make_mesh(sizes)
    task, state, batch = abstract(chosen, mesh, size)
    update = stepping.make(
        task,
        assemble.make_optimizers(chosen, state.params, chosen.total_steps),
        chosen.seed,
        chosen.ema_decay,
        chosen.micro_batches,
    )
    out = (jax.tree.map(lambda s: s.sharding, state), sharding.replicated(mesh))
    with jax.set_mesh(mesh), mock.patch.object(jax, "device_count", lambda: mesh.size):
        step = jax.jit(update, donate_argnums=0, out_shardings=out)
        return (
            state,
            mesh,
            step.lower(state, batch, jax.ShapeDtypeStruct((), jnp.int32)).compile(
                compiler_options=QUICK
            ),
        )


@functools.cache
def initial(**model):
    """The state before the first step, on the host; it does not depend on the grid."""
    init, _ = assemble.state_template(config(**model), spec(), 1000, make_mesh(ONE))
    return jax.device_get(jax.jit(init, compiler_options=QUICK)())


def trained(steps: int, sizes=ONE, size: int = SIZE, **overrides) -> list:
    """(metrics, state), on the host, after each of `steps` updates from `initial`."""
    state, mesh, step = program(sizes, size, **overrides)
    start = initial(
        **{name: value for name, value in overrides.items() if name.startswith("model__")}
    )
    rule = assemble.make_optimizers(config(**overrides), {"net"}, 1000)["net"]
    now = jax.device_put(
        start.replace(opt={"net": rule.init(start.params["net"])}),
        jax.tree.map(lambda s: s.sharding, state),
    )
    found = []
    for number in range(steps):
        now, metrics = step(now, sharding.put(mesh, boxes(number, size), BATCH), jnp.int32(number))
        found.append(jax.device_get((metrics, now)))
    return found


@functools.cache
def reference(steps: int, **overrides) -> list:
    return trained(steps, **overrides)


def deviation(tree, expected) -> float:
    """The largest max|a - b| / max|b| of any leaf."""

    def leaf(a, b):
        assert np.shape(a) == np.shape(b) and np.all(np.isfinite(b))
        return float(np.max(np.abs(np.asarray(a) - b)) / max(np.max(np.abs(b)), 1e-30))

    return max(jax.tree.leaves(jax.tree.map(leaf, tree, expected)))


def gradient(state):
    """What momentum holds after the first step."""
    return optax.tree_utils.tree_get(state.opt, "trace")


def traffic(compiled) -> dict[str, list[int]]:
    """{kind of collective: elements of its results on one device} in a compiled program."""
    found = {}
    for types, kind in COLLECTIVE.findall(compiled.as_text()):
        for shape in re.findall(r"\w+\[([\d,]*)\]", types):
            found.setdefault(kind, []).append(
                int(np.prod([int(n) for n in shape.split(",") if n] or [1]))
            )
    return found


def largest_leaf(tree) -> int:
    return max(leaf.size for leaf in jax.tree.leaves(tree))


def gathered_fields(compiled, sizes, params) -> list[int]:
    """All-gathers that are too large: any at all without fsdp, with it those of more elements than
    the largest parameter.

    The largest parameter here is smaller than one device's share of a hidden field, so no field
    passes as a parameter.
    """
    limit = largest_leaf(params) if sizes[1] > 1 else 0
    assert limit < BATCH * SIZE**3 * WIDTH // 8
    return [n for n in traffic(compiled).get("all-gather", []) if n > limit]


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_gradients_and_sgd(sizes):
    one, many = reference(5, **SGD), trained(5, sizes, **SGD)
    assert deviation(many[0][0]["net/loss"], one[0][0]["net/loss"]) < 1e-5
    assert deviation(gradient(many[0][1]), gradient(one[0][1])) < 1e-5
    assert deviation(many[4][1].params, one[4][1].params) < 1e-5
    start = initial(**BLOCK).params
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max() / max(np.abs(b).max(), 1e-3), one[4][1].params, start
    )
    # every leaf did move, by far more than the tolerance
    assert min(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_adam_and_its_collectives(sizes):
    """Ten losses; nothing the size of a field is gathered, and where only the batch is split only
    gradients are summed.
    """
    losses = [
        np.stack([m["net/loss"] for m, _ in run]) for run in (trained(10, sizes), reference(10))
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert losses[1][-1] < 0.9 * losses[1][0]
    state, _, compiled = program(sizes)
    assert gathered_fields(compiled, sizes, state.params) == []
    found = traffic(compiled)
    if sizes == (8, 1, 1):
        assert set(found) == {"all-reduce"} and max(found["all-reduce"]) <= largest_leaf(
            state.params
        )
    if sizes[1] > 1:
        split = [
            [not s.sharding.is_fully_replicated for s in jax.tree.leaves(t)]
            for t in (state.params, state.averages["ema"], state.opt)
        ]
        # kernels, averages, two moments
        assert [sum(leaves) for leaves in split] == [4, 4, 8] and "all-gather" in found


@functools.cache
def scored(sizes):
    """(rows, metrics) of the averaged weights after ten steps on boxes that were not trained on,
    and the compiled evaluation.
    """
    mesh, weights = make_mesh(sizes), reference(10)[-1][1].averages["ema"]
    task = components.task(config(), spec())
    weights = jax.device_put(weights, sharding.state_shardings(mesh, weights))
    batch = sharding.put(mesh, {**boxes(100), "_mask": np.ones(BATCH, np.float32)}, BATCH)
    arguments = weights["params"], {"stats": weights["stats"]}, batch, jax.random.key(0)
    with jax.set_mesh(mesh):
        compiled = assemble.evaluation(task, mesh).lower(*arguments).compile(compiler_options=QUICK)
        rows = {name: np.asarray(values) for name, values in compiled(*arguments).items()}
    metrics = task.summarize({name: values for name, values in rows.items() if name != "_mask"})
    metrics["spectra"].pop("window")
    return rows, metrics, compiled


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_metrics_and_spectra(sizes):
    """All metrics, P(k), T(k) and r(k), per box and summarised; one device transforms by FFT,
    several by matrix products.
    """
    (rows, metrics, _), (rows_many, metrics_many, compiled) = scored(ONE), scored(sizes)
    assert deviation(rows_many, rows) < 1e-4 and deviation(metrics_many, metrics) < 1e-4
    assert {"r", "T", "P_pred"} < set(metrics["spectra"]) and 0.5 < metrics["pearson"] < 1
    assert max(traffic(compiled).get("all-gather", [0])) <= largest_leaf(program()[0].params)


def test_a_state_made_on_the_mesh_is_the_state_of_one_device():
    init, state = assemble.state_template(config(), spec(), 1000, make_mesh((2, 2, 2)))
    made = jax.jit(
        init, out_shardings=jax.tree.map(lambda s: s.sharding, state), compiler_options=QUICK
    )()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(made), initial())


def test_micro_batches():
    """Two micro-batches on two devices are one batch on one, and splitting them moves nothing."""
    one, parts = reference(5, **SGD), trained(5, (2, 1, 1), **SGD, micro_batches=2)
    assert deviation(gradient(parts[0][1]), gradient(one[0][1])) < 1e-5
    assert deviation(parts[4][1].params, one[4][1].params) < 1e-5
    assert set(traffic(program((2, 1, 1), **SGD, micro_batches=2)[2])) == {"all-reduce"}
