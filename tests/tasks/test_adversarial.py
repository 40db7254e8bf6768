"""The adversarial task against a step written by hand, its groups, its rules, and its resume."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvol.models.discriminator import discriminator
from jaxvol.tasks import adversarial
from jaxvol.training import optim, step
from jaxvol.types import UserError
from tests.tasks import gans
from tests.tasks.gans import SPEC, Generator, settings, start
from tests.training import test_loop

quick_to_compile = gans.quick_to_compile


def assert_close(a, b, rtol):
    """Leaf by leaf, relative to the largest element of the leaf."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=rtol * max(float(np.abs(y).max()), 1e-30))


def losses_by_hand(mode, generator, critic, x, y):
    """The losses of generator and discriminator, each with the other's parameters held."""

    def judge(disc, image):
        return critic.apply({"params": disc}, jnp.concatenate([x, image], -1))[0]

    def loss_g(gen, disc):
        image = generator.apply({"params": gen}, x)
        fake, real = (
            judge(jax.lax.stop_gradient(disc), image),
            jax.lax.stop_gradient(judge(disc, y)),
        )
        gan = 0.5 * jnp.mean((fake[-1] - 1) ** 2) if mode == "lsgan" else -jnp.mean(fake[-1])
        matching = sum(jnp.mean(jnp.abs(a - b)) for a, b in zip(fake, real))
        axes = (1, 2, 3, 4)
        p, t = (v - v.mean(axes, keepdims=True) for v in (image, y))
        pearson = jnp.sum(p * t, axes) / jnp.sqrt(jnp.sum(p * p, axes) * jnp.sum(t * t, axes))
        return (
            0.7 * gan + 2.0 * matching + 0.5 * jnp.mean(1 - pearson) + jnp.mean(jnp.abs(image - y))
        )

    def loss_d(disc, gen):
        image = jax.lax.stop_gradient(generator.apply({"params": gen}, x))
        fake, real = judge(disc, image)[-1], judge(disc, y)[-1]
        if mode == "lsgan":
            return 0.5 * jnp.mean((real - 1) ** 2) + 0.5 * jnp.mean(fake**2)
        return jnp.mean(jnp.maximum(0, 1 - real)) + jnp.mean(jnp.maximum(0, 1 + fake))

    return loss_g, loss_d


@pytest.mark.parametrize("mode", ["lsgan", "hinge"])
def test_step_equals_a_hand_written_two_optimizer_step(mode):
    """Generator through a frozen discriminator, discriminator on a detached image: two losses, two
    gradients, two optimizers.
    """
    with jax.enable_x64(True):
        config = settings(
            task__mode=mode,
            precision="f64",
            task__weights__adversarial=0.7,
            task__weights__feature_matching=2.0,
            task__weights__correlation=0.5,
            optimizer__name="sgd",
            optimizer__sgd__momentum=0.9,
            ema_decay=0.0,
            optimizer__clip_norm=0.0,
            groups={"disc": {"learning_rate": 0.02, "clip_norm": 0.3}},
            optimizer__schedule__name="constant",
        )
        task, batch, optimizers, state = start(config, Generator(dtype=jnp.float64))
        generator, critic = (
            Generator(dtype=jnp.float64),
            discriminator(config.task.discriminator, SPEC, "f64"),
        )
        x, y = (batch[name].astype(jnp.float64) for name in ("input", "target"))

        loss_g, loss_d = losses_by_hand(mode, generator, critic, x, y)
        hand = {
            "gen": optax.sgd(0.05, 0.9),
            "disc": optax.chain(optax.clip_by_global_norm(0.3), optax.sgd(0.02, 0.9)),
        }
        moments = {group: rule.init(state.params[group]) for group, rule in hand.items()}

        @jax.jit
        def by_hand(params, moments):
            gen, disc = params["gen"], params["disc"]
            grads = {"gen": jax.grad(loss_g)(gen, disc), "disc": jax.grad(loss_d)(disc, gen)}
            moves = {
                group: rule.update(grads[group], moments[group]) for group, rule in hand.items()
            }
            norms = {group: optax.tree.norm(grad) for group, grad in grads.items()}
            return (
                {g: u for g, (u, _) in moves.items()},
                {g: m for g, (_, m) in moves.items()},
                norms,
            )

        run = jax.jit(step.make(task, optimizers, config.seed, 0.0, 1))
        for i in range(3):
            updates, moments, norms = by_hand(state.params, moments)
            before = state.params
            state, metrics = run(state, batch, i)
            assert_close(jax.tree.map(jnp.subtract, state.params, before), updates, 1e-6)
            for group in hand:
                np.testing.assert_allclose(metrics[f"{group}/grad_norm"], norms[group], rtol=1e-6)
        assert metrics["disc/clipped_norm"] == pytest.approx(0.3)
        assert metrics["disc/clipped_fraction"] == pytest.approx(1 - 0.3 / float(norms["disc"]))


def test_head_start_leaves_the_generator_bitwise_unchanged():
    config = settings(
        groups={"gen": {"delay": 3, "schedule": {"warmup_steps": 0}}}, optimizer__name="adam"
    )
    task, batch, optimizers, state = start(config, Generator(norm=True))
    run = jax.jit(step.make(task, optimizers, 0, 0.9, 1))
    first = jax.device_get(state)
    for i in range(3):
        state, metrics = run(state, batch, i)
        assert (
            metrics["gen/lr"] == 0 == metrics["gen/update_norm"]
            and metrics["gen/grad_norm"] > 0
            and metrics["disc/lr"] > 0
        )
    for part in (
        lambda s: s.params["gen"],
        lambda s: s.extra["stats"]["gen"],
        lambda s: s.averages["ema"]["params"]["gen"],
        lambda s: s.averages["ema"]["stats"]["gen"],
        lambda s: s.opt["gen"].inner,
    ):
        jax.tree.map(np.testing.assert_array_equal, part(first), part(jax.device_get(state)))
    assert all(
        np.any(a != b)
        for a, b in zip(
            jax.tree.leaves(first.params["disc"]), jax.tree.leaves(state.params["disc"])
        )
    )
    state, metrics = run(state, batch, 3)
    assert metrics["gen/lr"] == pytest.approx(0.05) and int(state.opt["gen"].inner.count) == 1
    for part in (
        lambda s: s.params["gen"],
        lambda s: s.extra["stats"]["gen"],
        lambda s: s.averages["ema"]["params"]["gen"],
    ):
        assert all(
            np.any(a != b)
            for a, b in zip(jax.tree.leaves(part(first)), jax.tree.leaves(part(state)))
        )


def test_resume_is_bitwise(tmp_path):
    config = settings(
        task__r1__weight=1.0,
        task__r1__every=3,
        task__noise__std=0.1,
        groups={"gen": {"every": 2, "delay": 1}},
        total_steps=6,
        evaluate__every=6,
        checkpoint__every=3,
        task__discriminator__norm="batch",
    )
    task = adversarial.make(config, SPEC, Generator(norm=True))
    why, straight = test_loop.run_toy(tmp_path / "a", config, task=task)
    assert why == "finished"
    why, _ = test_loop.run_toy(tmp_path / "b", config, task=task, interrupt_at=3)
    assert why == "signal SIGTERM"
    why, resumed = test_loop.run_toy(tmp_path / "b", config, task=task)
    assert why == "finished" and resumed.progress.restarts == 1
    for a, b in zip(test_loop.leaves(straight), test_loop.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (tmp_path / "a/metrics.csv").read_bytes() == (tmp_path / "b/metrics.csv").read_bytes()
    tags = {line.split(",")[1] for line in (tmp_path / "a/metrics.csv").read_text().splitlines()}
    for tag in (
        "disc/D_real",
        "disc/D_fake",
        "disc/d_loss",
        "disc/accuracy_real",
        "gen/share_l1",
        "gen/share_feature_matching",
        "gen/grad_norm",
        "gen/clipped_norm",
        "gen/clipped_fraction",
        "disc/clipped_fraction",
        "gen/adversarial_weight",
    ):
        assert f"train/{tag}" in tags


def test_rules_are_listed_together():
    assert adversarial.rules(settings()) == []
    problems = "\n".join(
        adversarial.rules(
            settings(
                task__mode="wgan",
                task__correlation__scope="batch",
                task__weights__correlation=1.0,
                micro_batches=2,
                task__r1__every=0,
                task__losses=(("correlation", 1.0),),
                task__label_smoothing=0.7,
                task__resolutions=(1, 0),
            )
        )
    )
    for word in (
        "task.mode is 'wgan'",
        "micro_batches=2",
        "r1.every is 0",
        "two terms of one name",
        "label_smoothing is 0.7",
        "resolutions",
    ):
        assert word in problems
    with pytest.raises(UserError, match="every=0"):
        optim.make(settings(groups={"gen": {"every": 0}}).optimizer, "gen", 10)
