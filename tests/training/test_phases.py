"""Phases: each is checked before the first one trains, and has weights, a clock and a best of its
own.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol.config import phases, validate
from jaxvol.training import assemble, handover, lookup, step
from jaxvol.types import Parts, Task, UserError
from tests import toys
from tests.training.test_loop import leaves, run_toy

SGD = {
    "optimizer__name": "sgd",
    "optimizer__learning_rate": 0.1,
    "optimizer__clip_norm": 0.0,
    "optimizer__schedule__name": "constant",
}


def players(*names) -> Task:
    """One number per player, each descending (value - 3)^2; "clock" reports the phase's."""

    def init(key, batch):
        return {name: jnp.float32(1.0) for name in names}, {"seen": jnp.int32(0)}

    def loss(params, fixed, batch, key):
        terms = {name: {"square": (value - 3.0) ** 2} for name, value in params.items()}
        return terms, ({"clock": fixed.phase_step}, {"seen": fixed.extra["seen"] + 1})

    def evaluate(params, extra, batch, key):
        distance = sum(jnp.abs(value - 3.0) for value in params.values())
        return {"vrmse": jnp.full(batch["input"].shape[0], distance)}

    return Task(
        init,
        loss,
        evaluate,
        lambda rows: {"vrmse": float(np.mean(rows["vrmse"]))},
        lambda params, extra, batch: batch["input"],
    )


def in_phases(*tasks, handovers=None, steps=4, **overrides):
    """(config, task of a phase's config) for tasks that follow one another; the phase is told by
    its learning rate.
    """
    rates = [0.1 - 0.01 * i for i in range(len(tasks))]
    entries = tuple(
        (f"p{i}", steps, {"optimizer.learning_rate": rate}, *(handovers or {}).get(i, ()))
        for i, rate in enumerate(rates)
    )
    fields = {**SGD, "ema_decay": 0.5, "evaluate__every": 2, "checkpoint__every": 2, **overrides}
    config = toys.config(phases=entries, total_steps=steps * len(tasks), **fields)
    return config, lambda c: tasks[rates.index(c.optimizer.learning_rate)]


def values(workdir, tag):
    rows = [line.split(",") for line in (workdir / "metrics.csv").read_text().splitlines()[1:]]
    return {int(step): float(value) for step, name, value in rows if name == tag}


def test_groups_begin_and_end_with_a_phase(tmp_path):
    config, task = in_phases(players("gen"), players("gen", "reg"), players("gen", "reg", "disc"))
    _, straight = run_toy(tmp_path / "a", config, task=task)
    assert set(straight.state.params) == set(straight.state.opt) == {"gen", "reg", "disc"}
    gen = 1.0
    for rate in [0.1] * 4 + [0.09] * 4 + [0.08] * 4:
        gen -= rate * 2 * (gen - 3)
    np.testing.assert_allclose(straight.state.params["gen"], gen, rtol=1e-5)
    disc = 3 - 2 * (1 - 0.16) ** 4  # moved in the last phase alone
    np.testing.assert_allclose(straight.state.params["disc"], disc, rtol=1e-5)
    assert int(straight.state.extra["seen"]) == 12  # what a task carries goes on
    for at in (4, 6, 9):  # stopped at a boundary and inside of phases
        run_toy(tmp_path / f"b{at}", config, task=task, interrupt_at=at)
        _, resumed = run_toy(tmp_path / f"b{at}", config, task=task)
        for a, b in zip(leaves(straight), leaves(resumed), strict=True):
            np.testing.assert_array_equal(a, b)
        assert values(tmp_path / "a", "val/vrmse") == values(tmp_path / f"b{at}", "val/vrmse")
    dropped, task = in_phases(players("gen", "disc"), players("gen"))
    _, run = run_toy(tmp_path / "c", dropped, task=task)
    assert set(run.state.params) == {"gen"} == set(run.state.averages["ema"]["params"])


def test_every_phase_has_a_clock_of_its_own(tmp_path):
    config, task = in_phases(players("gen"), players("gen"))
    run_toy(tmp_path, config, task=task)
    clock = values(tmp_path, "train/clock")
    assert [clock[s] for s in range(1, 9)] == [0, 1, 2, 3, 0, 1, 2, 3]


def test_a_phase_begins_with_raw_or_averaged_weights_of_the_end_or_the_best(tmp_path):
    ends = {}
    for name, handover_of in (("raw", {}), ("ema", {"start": "ema"})):
        config, task = in_phases(
            players("gen"), players("gen"), handovers={1: (handover_of,)}, steps=4
        )
        _, run = run_toy(tmp_path / f"start-{name}", config, task=task)
        ends[name] = float(run.state.params["gen"])
    gen, ema = 1.0, 1.0
    for t in range(4):
        gen -= 0.1 * 2 * (gen - 3)
        decay = min(0.5, (1 + t) / (10 + t))
        ema = decay * ema + (1 - decay) * gen
    for name, start in (("raw", gen), ("ema", ema)):
        np.testing.assert_allclose(ends[name], 3 + (start - 3) * 0.82**4, rtol=1e-5)


def test_best_is_kept_per_phase_and_another_scale_does_not_win(tmp_path):
    scaled = players("gen")
    scaled = dataclasses.replace(
        scaled, summarize=lambda rows: {"vrmse": 100 + float(np.mean(rows["vrmse"]))}
    )
    config, task = in_phases(players("gen"), scaled, checkpoint__keep=1)
    _, run = run_toy(tmp_path, config, task=task)
    assert run.progress.best_steps == {"p0": 4} and run.progress.best_step == 8
    assert run.progress.best_value > 100
    names = {name: lookup.resolve(run_store(tmp_path), name)[0] for name in ("best", "best-p0")}
    assert names == {"best": 8, "best-p0": 4}


def run_store(workdir):
    from jaxvol.training import checkpoint

    return checkpoint.open_store(workdir, read_only=True)


def test_early_stopping_ends_the_phase_and_not_the_run(tmp_path):
    config, task = in_phases(
        players("gen"),
        players("gen"),
        steps=20,
        early_stopping__patience=2,
        early_stopping__min_delta=100.0,
    )
    why, straight = run_toy(tmp_path / "a", config, task=task)
    # best at the first validation of a phase, bad at the two that follow: each phase is cut short
    assert why == "early_stopped" and straight.progress.starts == [0, 4]
    assert int(straight.state.step) == 10
    run_toy(tmp_path / "b", config, task=task, interrupt_at=6)
    why, resumed = run_toy(tmp_path / "b", config, task=task)
    assert why == "early_stopped"
    for a, b in zip(leaves(straight), leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_checkpoint_holds_its_phases_config(tmp_path):
    config, task = in_phases(players("gen"), players("gen"))
    run_toy(tmp_path, config, task=task)
    store = run_store(tmp_path)
    rates = {}
    for number in store.manager.all_steps():
        meta = lookup.resolve(store, str(number))[1]
        rates[meta["phase_name"]] = json.loads(meta["config"])["optimizer"]["learning_rate"]
    assert rates["p1"] == pytest.approx(0.09)


def parts_with(task: Task, config) -> Parts:
    """Parts on one device, built as the run builds them, with a toy's task and data."""
    batch = {k: jnp.asarray(v[:1]) for k, v in toys.batch(0, slice(None)).items()}
    params = jax.eval_shape(task.init, jax.random.key(0), batch)[0]
    optimizers = assemble.make_optimizers(config, params, 4)
    struct = jax.eval_shape(lambda: step.init(task, optimizers, 0, batch))
    train_step = jax.jit(step.make(task, optimizers, 0, 0.0, 1))
    return Parts(task, toys.dataset(), optimizers, None, struct, train_step, None)


def test_what_a_later_phase_cannot_do_is_found_before_the_first_one_trains():
    config = toys.config(**SGD)
    sound = parts_with(players("gen"), config)

    def misspelt(params, fixed, batch, key):
        raise UserError("config.task.losses has 'mze'; known are mse, l1.")

    broken = dataclasses.replace(players("gen"), loss=misspelt)
    with pytest.raises(UserError, match="phase 'b': config.task.losses has 'mze'"):
        assemble.trace(
            dataclasses.replace(sound, step=parts_with(broken, config).step), config, "phase 'b'"
        )

    def wrong(params, fixed, batch, key):
        return {"gen": {"square": batch["input"] @ batch["nothing"]}}, ({}, {})

    broken = dataclasses.replace(players("gen"), loss=wrong)
    with pytest.raises(UserError, match="phase 'b' cannot be trained: KeyError"):
        assemble.trace(
            dataclasses.replace(sound, step=parts_with(broken, config).step), config, "phase 'b'"
        )
    wide = dataclasses.replace(
        players("gen"), init=lambda key, batch: ({"gen": jnp.ones(5)}, {"seen": jnp.int32(0)})
    )
    phase = phases.Phase("b", 4, 8, config)
    with pytest.raises(UserError, match=r"params/gen has \[\], expected \[5\]"):
        handover.check(sound, parts_with(wide, config), phase, "a")
    with pytest.raises(UserError, match="starts from 'teacher', but phase 'a' has raw, ema"):
        handover.check(sound, sound, phase._replace(weights="teacher"), "a")


@pytest.mark.parametrize(
    "entries, message",
    [
        ((("a", 6, {}), ("a", 6, {})), "a name of its own"),
        ((("a", 6, {}), ("b", 6, {}, {"start": "ema", "from": "middle"})), "'from': 'middle'"),
        ((("a", 6, {}), ("b", 6, {"optimizer.learning_rate": "fast"})), "phases cannot be used"),
        ((("a", 6, {}), ("b", 6, {"optimizer.name": "adm"})), "phase 'b': optimizer.name is 'adm'"),
        ((("a", 6, {}), ("b", 6, {"batch_size": 0})), "phase 'b': batch_size is 0"),
    ],
)
def test_every_phase_obeys_the_rules(entries, message):
    from jaxvol.config import experiments

    config = experiments.load("fno").get_config("quick")
    config.phases, config.total_steps = entries, 12
    config.optimizer.schedule.warmup_steps = 0
    with pytest.raises(UserError, match=message):
        validate.validate(config.lock())


def test_a_schedule_may_go_on_through_the_phases(tmp_path):
    config, task = in_phases(players("gen"), players("gen"), optimizer__schedule__span="run")
    _, run = run_toy(tmp_path, config, task=task)
    assert int(run.state.opt["gen"].count) == 8
