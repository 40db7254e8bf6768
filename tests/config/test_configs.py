"""Every config file and variant parses, validates and traces; a :quick trains, shrunk, and every
field of it is read.
"""

import contextlib
import os
import runpy
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from jaxvol import main
from jaxvol.config import command_line, components, identity, validate
from jaxvol.training import assemble, sharding
from tests import ROOT

DATA = Path(os.environ.get("JAXVOL_DATA", ROOT.parent / "shared" / "data"))
FILES = sorted(
    p
    for p in (ROOT / "configs").glob("*.py")
    if p.stem not in ("base", "limits", "physics", "__init__")
)
VARIANTS = [(p.stem, v) for p in FILES for v in runpy.run_path(str(p))["VARIANTS"]]
# half a minute each on two cores; their models are trained, restarted and spread in tests/models
LONG = {("pix2pixcc", "quick"), ("vit3d", "quick"), ("interferometry", "quick")}


def slow_if(cases, slow):
    """The cases as parameters, those that are slow marked so."""
    return [pytest.param(*case, marks=pytest.mark.slow if slow(case) else ()) for case in cases]


QUICK = slow_if([v for v in VARIANTS if v[1] == "quick"], LONG.__contains__)
# the larger sizes of the benchmark are traced for GPUs: the small ones have the same code
TRACED = slow_if(VARIANTS, lambda case: case[1].endswith(("-base", "-large")))
NEEDS = {
    "galaxies": ("data.path", "lss/corrfunc_Mr19_counts_128.npz"),
    "darcy": ("data.root", "pde"),
}
# Small enough for a test; only fields that the config has are set.
SHRUNK = {
    "preflight.run": False,
    "data.grid": 8,
    "data.boxes.train": 4,
    "data.boxes.val": 4,
    "data.boxes.test": 4,
    "data.fit_examples": 2,
    "model.width": 4,
    "model.widths": (4, 8),
    "model.blocks": 1,
    "model.stem_layers": 1,
    "task.discriminator.width": 4,
    "task.discriminator.scales": 1,
    "model.layers": 2,
    "model.modes": (2, 2, 2),
    "batch_size": 4,
    "evaluate.batch_size": 4,
    "total_steps": 2,
    "optimizer.schedule.warmup_steps": 1,
    "evaluate.every": 2,
    "checkpoint.every": 2,
    "log_every": 1,
}

# they have no depth to split
IMAGES = {"mesh.fsdp": 4, "mesh.space": 1, "batch_size": 8, "evaluate.batch_size": 8}


def load(name: str, variant: str, **overrides) -> ConfigDict:
    flags = [f"--config={ROOT}/configs/{name}.py" + (f":{variant}" if variant else "")]
    config, _, _ = command_line.parse(["jaxvol", *flags])
    if variant in NEEDS:
        path, where = NEEDS[variant]
        if not (DATA / where).exists():
            pytest.skip(
                f"needs {where}, real data that this project does not ship (folder $JAXVOL_DATA)"
            )
        config.update_from_flattened_dict({path: str(DATA / where)})
    known = identity.flatten(config.to_dict())
    config.update_from_flattened_dict({k: v for k, v in overrides.items() if k in known})
    return config


@pytest.mark.parametrize("name, variant", TRACED)
def test_config_is_valid_and_its_step_traces(name, variant, tmp_path):
    cosmology = {
        "data.boxes.train": 2,
        "data.boxes.val": 1,
        "data.boxes.test": 1,
        "data.cache_dir": str(tmp_path),
        "data.fit_examples": 2,
    }
    config = load(name, variant, **cosmology)
    validate.validate(config)
    dataset = components.dataset(config)
    mesh = sharding.make_mesh(ConfigDict({"data": 1, "fsdp": 1, "space": 1}), jax.devices()[:1])
    _, state = assemble.state_template(config, dataset.spec, config.total_steps, mesh)
    from jaxvol.training import step

    run = step.make(
        components.task(config, dataset.spec),
        assemble.make_optimizers(config, state.params, config.total_steps),
        0,
        config.ema_decay,
        config.micro_batches,
    )
    batch = next(dataset.stream(0, 1, slice(0, config.batch_size)))
    new, metrics = jax.eval_shape(run, state, batch, 0)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert all(metrics[f"{group}/loss"].shape == () for group in state.params)


@contextlib.contextmanager
def recording(monkeypatch):
    """The set of (id of the ConfigDict, field) that are read inside; writing a config out does not
    count as reading it.
    """
    seen, paused = set(), [0]
    get = ConfigDict.__getitem__

    def getitem(self, key):
        if not paused[0]:
            seen.add((id(self), key))
        return get(self, key)

    def silent(function):
        def wrapped(*args, **kwargs):
            paused[0] += 1
            try:
                return function(*args, **kwargs)
            finally:
                paused[0] -= 1

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(ConfigDict, "__getitem__", getitem)
        for name in (
            "to_dict",
            "to_json",
            "copy_and_resolve_references",
            "items",
            "update_from_flattened_dict",
            "__init__",
            "lock",
        ):
            patch.setattr(ConfigDict, name, silent(getattr(ConfigDict, name)))
        patch.setattr(validate, "validate", lambda config: [])  # it reads everything
        yield seen


def unread(config, seen, prefix="") -> list[str]:
    """Dotted leaves of `config` that nobody read; of alternatives chosen by name only the chosen
    one counts.
    """
    found = []
    alternatives = {
        "optimizer": ("adamw", "adam", "sgd", "lion", "lbfgs", "broyden"),
        "optimizer.schedule": (
            "constant",
            "cosine",
            "exponential",
            "step",
            "onecycle",
            "cyclic",
            "plateau",
        ),
        "task.balance": ("loss_ratio", "gradnorm", "ntk", "relobralo"),
    }.get(prefix.rstrip("."), ())
    with contextlib.ExitStack():
        for key in config.keys():
            value = dict.get(dict(config._fields), key)
            if key in alternatives and key != config._fields["name"]:
                continue
            if isinstance(value, ConfigDict):
                found += unread(value, seen, f"{prefix}{key}.")
            elif (id(config), key) not in seen:
                found.append(prefix + key)
    return found


# What only another mode or another choice reads: tested where those are.
ELSEWHERE = (
    "resume",
    "distributed.",
    "preflight.",
    "predict.",
    "compare.",
    "sweep.",
    "evaluate.checkpoint",
    "evaluate.split",
    "evaluate.weights",
    "wandb.entity",
    "wandb.offline",
    "init_checkpoint",
    "init_groups",
    "early_stopping.min_delta",
    "task.correlation.",
    "task.r1.every",
    "matmul_precision",
    "data.pm_steps",
    "data.tracers.",
    "seed",
    "task.refine.",
    "task.causal.bins",
    "task.weights.",
    "data.points.",
)


@pytest.mark.parametrize("name, variant", QUICK)
def test_quick_trains_two_steps_and_reads_every_field(name, variant, tmp_path, monkeypatch):
    mesh = {
        "data.cache_dir": str(tmp_path / "cache"),
        "mesh.data": 2,
        "mesh.fsdp": 2,
        "mesh.space": 2,
    }
    config = load(
        name, variant, **{**SHRUNK, **mesh, **(IMAGES if name == "interferometry" else {})}
    )
    validate.validate(config)
    with recording(monkeypatch) as seen:
        assert main.do_train(config, tmp_path / "run") == 0
    missed = [leaf for leaf in unread(config, seen) if not leaf.startswith(ELSEWHERE)]
    assert not missed, f"configs/{name}.py:{variant} has fields that nothing reads: {missed}"
    assert (tmp_path / "run/evaluation/metrics.json").exists() and (
        tmp_path / f"run/evaluation/{'solution' if name == 'pinn' else 'slices'}.png"
    ).exists()


def test_an_unread_field_is_found(monkeypatch):
    config = ConfigDict({"a": 1, "b": {"c": 2, "d": 3}})
    with recording(monkeypatch) as seen:
        assert config.a + config.b.c == 3 and config.to_dict()
    assert unread(config, seen) == ["b.d"]


def test_changing_a_model_field_changes_the_traced_program(tmp_path):
    def program(**over):
        config = load("fno", "quick", **{**SHRUNK, "data.cache_dir": str(tmp_path), **over})
        spec = components.dataset(config).spec
        learned = components.task(config, spec)
        params, extra = jax.eval_shape(
            learned.init, jax.random.key(0), components.example(config, spec, 2)
        )
        return str(
            jax.make_jaxpr(learned.predict)(params, extra, components.example(config, spec, 2))
        )

    plain = program()
    changes = {
        "model.width": 6,
        "model.layers": 3,
        "model.modes": (3, 2, 2),
        "model.window": "one_sided",
        "model.factorization": "cp",
        "model.rank": 0.5,
        "model.implementation": "fft",
        "model.lifting_ratio": 1.0,
        "model.projection_ratio": 1.0,
        "model.bypass": "identity",
        "model.channel_mlp_ratio": 0.25,
        "model.channel_mlp_skip": "identity",
        "model.norm": "instance",
        "model.activate_last": True,
        "model.coordinates": "all",
    }
    for field, value in changes.items():
        assert program(**{field: value}) != plain, f"{field}={value} changes nothing"
