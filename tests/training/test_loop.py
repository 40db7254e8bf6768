"""The loop: resume equals a straight run, phases, early stopping, refusal of bad steps, locks, what
a workdir holds.
"""

import dataclasses
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxvol.config import phases
from jaxvol.evaluation.evaluators import examples
from jaxvol.runtime import processes, writer
from jaxvol.training import (
    assemble,
    checkpoint,
    loop,
    progress,
    sharding,
    step,
)
from jaxvol.training.transfer import Source
from jaxvol.types import NonFiniteError, Task, UserError, WorkdirLocked
from tests import toys


def interrupted(dataset, at):
    """The dataset, and a signal while batch `at` is read."""

    def stream(start, stop, rows):
        for s, batch in zip(range(start, stop), dataset.stream(start, stop, rows), strict=True):
            if s == at:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    return dataclasses.replace(dataset, stream=stream)


def run_toy(workdir, config, dataset=None, task=None, interrupt_at=None, initial=list, mesh=None):
    """Train a toy in `workdir`; a signal arrives while batch `interrupt_at` is read.  task: a Task,
    or a function that gives that of a phase's config.  (why, Run).
    """
    dataset, task = dataset or toys.dataset(), task or toys.regression_task()
    mesh = mesh or sharding.make_mesh(config.mesh)
    plan = phases.plan(config)
    if interrupt_at is not None:
        dataset = interrupted(dataset, interrupt_at)

    def parts_of(index):
        phase = plan[index]
        chosen = task if isinstance(task, Task) else task(phase.config)
        whole = phase.config.optimizer.schedule.span == "run"
        steps = plan[-1].stop if whole else phase.steps
        return toys.parts(phase.config, steps, chosen, dataset, mesh)

    with jax.set_mesh(mesh), processes.lock(workdir):
        run = progress.Run(
            config=config,
            mesh=mesh,
            store=checkpoint.open_store(workdir, config.checkpoint.keep),
            writer=writer.open_run(workdir, config, True),
            watch=lambda *a: [],
            score=examples.score,
            meta={"config_hash": "h", "versions": {}},
            figures=lambda *a: {},
        )
        try:
            return loop.train(run, parts_of, initial), run
        finally:
            run.writer.close()
            run.store.manager.close()


def leaves(run):
    return [
        np.asarray(x) for x in jax.tree.leaves(dataclasses.replace(run.state, step=run.state.step))
    ]


@pytest.mark.parametrize("at", [3, 4, 9])
def test_stopped_and_restarted_equals_a_straight_run_bit_for_bit(tmp_path, at):
    config = toys.config(optimizer__schedule__name="plateau")
    why, straight = run_toy(tmp_path / "a", config)
    assert why == "finished"
    why, stopped = run_toy(tmp_path / "b", config, interrupt_at=at)
    assert why == "signal SIGTERM" and int(stopped.state.step) == at + 1 == stopped.saved
    why, resumed = run_toy(tmp_path / "b", config)
    assert why == "finished" and resumed.progress.restarts == 1
    for a, b in zip(leaves(straight), leaves(resumed)):
        np.testing.assert_array_equal(a, b)
    assert (tmp_path / "a/metrics.csv").read_bytes() == (tmp_path / "b/metrics.csv").read_bytes()
    rows = (tmp_path / "a/metrics.csv").read_text()
    assert "\n0,val/vrmse," in rows and "\n12,val/vrmse," in rows and "\n12,train/net/lr," in rows


def test_it_learns_and_the_best_checkpoint_is_the_best_validation_of_the_averaged_weights(tmp_path):
    config = toys.config(total_steps=60, ema_decay=0.8, optimizer__learning_rate=0.2)
    _, run = run_toy(tmp_path, config)
    values = {
        int(r.split(",")[0]): float(r.split(",")[2])
        for r in (tmp_path / "metrics.csv").read_text().splitlines()
        if ",val/vrmse," in r
    }
    best = min(values, key=values.get)
    assert run.progress.best_step == best and values[best] < 0.3 * values[0]
    assert best in run.store.manager.all_steps() or best == 60


def test_phases_change_the_optimizer_and_keep_the_weights(tmp_path):
    phases = (
        ("adam", 6, {"optimizer.learning_rate": 0.2}),
        (
            "polish",
            6,
            {
                "optimizer.name": "sgd",
                "optimizer.learning_rate": 0.01,
                "optimizer.schedule.name": "constant",
            },
        ),
    )
    config = toys.config(phases=phases)
    _, straight = run_toy(tmp_path / "a", config)
    rows = [
        r.split(",")
        for r in (tmp_path / "a/metrics.csv").read_text().splitlines()
        if "train/net/lr" in r
    ]
    assert float(rows[0][2]) == pytest.approx(0.2) and [
        float(r[2]) for r in rows[6:]
    ] == pytest.approx([0.01] * 6)
    for at in (5, 8):  # stopped at the end of a phase, and inside the second
        run_toy(tmp_path / f"b{at}", config, interrupt_at=at)
        _, resumed = run_toy(tmp_path / f"b{at}", config)
        for a, b in zip(leaves(straight), leaves(resumed)):
            np.testing.assert_array_equal(a, b)


def test_early_stopping_ends_saves_and_stays_ended(tmp_path):
    config = toys.config(
        total_steps=40,
        early_stopping__patience=2,
        early_stopping__min_delta=100.0,
        checkpoint__best_metric="vrmse",
    )
    why, run = run_toy(tmp_path, config)
    # best at 0, bad at 4 and 8
    assert why == "early_stopped" and run.saved == 8 == int(run.state.step)
    why, again = run_toy(tmp_path, config)
    assert why == "early_stopped" and again.saved == 8


def test_a_nan_in_the_data_stops_with_names_and_keeps_the_last_good_checkpoint(
    tmp_path, monkeypatch
):
    def poisoned(s, rows, size=8):
        found = toys.batch(s, rows, size)
        if s == 6:
            found["target"][2, 1, 1, 1, 0] = np.nan
        return found

    runs, check = [], loop.check_finite
    monkeypatch.setattr(loop, "check_finite", lambda run, *a: (runs.append(run), check(run, *a)))
    dataset = dataclasses.replace(
        toys.dataset(),
        batch=poisoned,
        stream=lambda a, b, rows: (poisoned(s, rows) for s in range(a, b)),
    )
    with pytest.raises(
        NonFiniteError,
        match=r"Update 6 was refused.*batch\['target'\]: 1 of.*newest checkpoint is step 4",
    ):
        run_toy(tmp_path, toys.config(log_every=3), dataset)
    run = runs[-1]
    assert run.taken == 6 and run.saved == 4  # what the summary says
    assert 4 in checkpoint.open_store(tmp_path, read_only=True).manager.all_steps()


def test_another_process_cannot_train_in_the_same_workdir(tmp_path):
    with processes.lock(tmp_path):
        with pytest.raises(WorkdirLocked, match="in use by another run .pid"):
            processes.lock(tmp_path)
    processes.lock(tmp_path).close()


def test_changed_data_is_refused_on_resume(tmp_path):
    run_toy(tmp_path, toys.config(), interrupt_at=5)
    with pytest.raises(UserError, match="data changed since step 6"):
        run_toy(tmp_path, toys.config(), toys.dataset(hash="other"))


def test_init_from_takes_matching_weights_into_parameters_and_average(tmp_path):
    _, source = run_toy(tmp_path / "a", toys.config())
    pair = source.state.averages["ema"]
    config = toys.config(init_from="a", total_steps=1, optimizer__learning_rate=1e-9)
    _, run = run_toy(tmp_path / "b", config, initial=lambda: [Source("a", pair)])
    np.testing.assert_allclose(run.state.params["net"]["a"], pair["params"]["net"]["a"], atol=1e-6)
    np.testing.assert_allclose(
        run.state.averages["ema"]["params"]["net"]["b"], pair["params"]["net"]["b"], atol=1e-6
    )


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_eight_devices_train_like_one(tmp_path, shape):
    found = {}
    for name, sizes in (("one", (1, 1, 1)), ("eight", shape)):
        devices = jax.devices()[: int(np.prod(sizes))]
        config = toys.config(optimizer__name="sgd", optimizer__clip_norm=0.0, total_steps=5)
        task, mesh = (
            toys.regression_task(),
            sharding.make_mesh(
                toys.config(mesh__data=sizes[0], mesh__fsdp=sizes[1], mesh__space=sizes[2]).mesh,
                devices,
            ),
        )
        with jax.set_mesh(mesh):
            groups = jax.eval_shape(task.init, jax.random.key(0), toys.batch(0, slice(None)))[0]
            optimizers = assemble.make_optimizers(config, groups, 5)
            state = step.init(
                task,
                optimizers,
                0,
                {k: jnp.asarray(v) for k, v in toys.batch(0, slice(None)).items()},
            )
            state = jax.device_put(state, sharding.state_shardings(mesh, state))
            run = jax.jit(step.make(task, optimizers, 0, 0.9, 1))
            for i in range(5):
                batch = sharding.put(mesh, toys.batch(i, slice(None)), 8)
                assert batch["input"].sharding.spec == P(("data", "fsdp"), "space")
                state, metrics = run(state, batch, i)
        found[name] = jax.device_get((state, metrics))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        found["one"],
        found["eight"],
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_closed_terminal_save_as_a_scheduler_does(tmp_path, number):
    def stream(start, stop, rows):
        for s, batch in zip(range(start, stop), toys.dataset().stream(start, stop, rows)):
            if s == 5:
                signal.raise_signal(number)
            yield batch

    dataset = dataclasses.replace(toys.dataset(), stream=stream)
    why, run = run_toy(tmp_path, toys.config(), dataset=dataset)
    assert why == f"signal {number.name}" and run.saved == 6 == int(run.state.step)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    def stream(start, stop, rows):
        for s, batch in zip(range(start, stop), toys.dataset().stream(start, stop, rows)):
            if s == 5:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            yield batch

    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path, toys.config(), dataset=dataclasses.replace(toys.dataset(), stream=stream))
