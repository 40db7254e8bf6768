"""The adversarial task against steps, equilibria and penalties that can be written down."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxvol.config import base
from jaxvol.models.discriminator import discriminator
from jaxvol.tasks import adversarial
from jaxvol.training import assemble, optim, step
from jaxvol.training.gradients import pull_back
from jaxvol.types import Field, Fixed, Spec, UserError
from tests import toys
from tests.training import test_loop

N = 8
SPEC = Spec(
    {"input": Field(("x",)), "target": Field(("y",))},
    (N,) * 3,
    (1.0,) * 3,
    periodic=(True, True, False),
)


class Generator(nn.Module):
    """Convolutions in blocks that may be recomputed, with or without running statistics and
    dropout.
    """

    width: int = 4
    norm: bool = False
    remat: bool = False
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool = False):
        block = nn.remat(nn.Conv) if self.remat else nn.Conv
        for i in range(2):
            x = nn.tanh(block(self.width, (3, 3, 3), param_dtype=self.dtype, name=f"block_{i}")(x))
        if self.norm:
            x = nn.Dropout(0.2, deterministic=not train)(
                nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
            )
        return nn.Conv(1, (1, 1, 1), param_dtype=self.dtype, name="last")(x)


class Constant(nn.Module):
    """A discriminator that has one opinion, whatever it is shown."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        c = self.param("c", nn.initializers.constant(0.2), ())
        return (
            (
                jnp.broadcast_to(c, (x.shape[0], 1, 1, 1, 1))
                + 0 * x.mean((1, 2, 3, 4), keepdims=True),
            ),
        )


class Patches(nn.Module):
    """A linear discriminator: each logit is a weighted sum of the 4^3 voxels of a
    patch of its own.
    """

    @nn.compact
    def __call__(self, x, train: bool = False):
        return ((nn.Conv(1, (4, 4, 4), (4, 4, 4), padding="VALID", name="patch")(x),),)


@pytest.fixture(autouse=True)
def quick_to_compile():
    """Tiny programs, run a few times; nothing here is a matter of XLA's optimisations, the count of
    operations neither.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def settings(**fields):
    """A config with the adversarial task on 8^3, locked; `a__b=v` sets a.b."""
    config = toys.config().copy_and_resolve_references().unlock()
    config.task = base.task("adversarial")
    config.task.metrics, config.task.spectra, config.checkpoint.best_metric = (
        ("vrmse",),
        False,
        "vrmse",
    )
    own = config.task.discriminator
    own.scales, own.width, own.strides = 1, 4, (2, 1)
    groups = fields.pop("groups", {})
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in fields.items()}
    )
    config.optimizer.groups.update(groups)
    return config.lock()


def start(config, model=None, count=2, spec=SPEC):
    task = adversarial.make(config, spec, model or Generator())
    batch = {name: jnp.asarray(x[:count]) for name, x in toys.batch(0, slice(None)).items()}
    optimizers = assemble.make_optimizers(config, ("gen", "disc"), config.total_steps)
    state = jax.jit(lambda: step.init(task, optimizers, config.seed, batch))()
    return task, batch, optimizers, state


def terms_at(task, state, batch):
    """step -> (terms, (metrics, changed extra)) of the loss, compiled once."""
    run = jax.jit(
        lambda at: task.loss(
            state.params, Fixed(at, at, state.extra, state.averages), batch, jax.random.key(3)
        )
    )
    return lambda at: run(jnp.int32(at))


def assert_close(a, b, rtol):
    """Leaf by leaf, relative to the largest element of the leaf."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=rtol * max(float(np.abs(y).max()), 1e-30))


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
                0.7 * gan
                + 2.0 * matching
                + 0.5 * jnp.mean(1 - pearson)
                + jnp.mean(jnp.abs(image - y))
            )

        def loss_d(disc, gen):
            image = jax.lax.stop_gradient(generator.apply({"params": gen}, x))
            fake, real = judge(disc, image)[-1], judge(disc, y)[-1]
            if mode == "lsgan":
                return 0.5 * jnp.mean((real - 1) ** 2) + 0.5 * jnp.mean(fake**2)
            return jnp.mean(jnp.maximum(0, 1 - real)) + jnp.mean(jnp.maximum(0, 1 + fake))

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


def test_a_constant_discriminator_sits_at_one_half(monkeypatch):
    """(c - 1)^2 / 2 + c^2 / 2 is least at 1/2; with the generator's w/2 (c - 1)^2 leaking in, at (1
    + w) / (2 + w) = 3/4.
    """
    monkeypatch.setattr(adversarial.discriminator, "discriminator", lambda *a: Constant())
    config = settings(
        task__weights__adversarial=2.0,
        task__weights__feature_matching=0.0,
        optimizer__name="sgd",
        optimizer__learning_rate=0.2,
        optimizer__clip_norm=0.0,
        optimizer__schedule__name="constant",
    )
    task, batch, optimizers, state = start(config)
    run = jax.jit(step.make(task, optimizers, 0, 0.9, 1))
    for i in range(40):
        state, metrics = run(state, batch, i)
    assert float(state.params["disc"]["c"]) == pytest.approx(0.5, abs=1e-4)
    assert (
        float(metrics["disc/D_real"])
        == float(metrics["disc/D_fake"])
        == pytest.approx(0.5, abs=1e-4)
    )
    assert float(metrics["disc/d_loss"]) == pytest.approx(0.25, abs=1e-4)

    def leaking(c):
        return (c - 1) ** 2 / 2 + c**2 / 2 + 2.0 * (c - 1) ** 2 / 2

    assert jax.grad(leaking)(0.75) == 0 and jax.grad(leaking)(0.5) != 0


def test_hinge_terms_and_accuracies_of_a_constant_discriminator(monkeypatch):
    monkeypatch.setattr(adversarial.discriminator, "discriminator", lambda *a: Constant())
    task, batch, _, state = start(settings(task__mode="hinge", task__weights__adversarial=3.0))
    terms, (metrics, _) = terms_at(task, state, batch)(0)
    found = {name: float(v) for name, v in {**terms["disc"], **terms["gen"], **metrics}.items()}
    assert found["real"] == pytest.approx(0.8) and found["fake"] == pytest.approx(1.2)
    assert found["adversarial"] == pytest.approx(-0.6) and found["disc/d_loss"] == pytest.approx(
        2.0
    )
    # 0.2 is above the middle, 0
    assert found["disc/accuracy_real"] == 1 and found["disc/accuracy_fake"] == 0
    shares = {name: v for name, v in found.items() if "share" in name}
    assert sum(shares.values()) == pytest.approx(1) and found["feature_matching"] == 0
    assert shares["gen/share_adversarial"] == pytest.approx(0.6 / (0.6 + found["l1"]))


@pytest.mark.parametrize("every", [1, 3])
def test_r1_of_a_linear_discriminator_is_its_squared_weights(monkeypatch, every):
    """D_p = w . y_p + v . x_p per patch: the penalty is weight / 2 |w|^2 (k times at every k-th
    step), its gradient weight w.
    """
    monkeypatch.setattr(adversarial.discriminator, "discriminator", lambda *a: Patches())
    config = settings(task__r1__weight=10.0, task__r1__every=every)
    task, batch, _, state = start(config)
    w = np.asarray(state.params["disc"]["patch"]["kernel"])[..., 1:, :]
    run = terms_at(task, state, batch)
    for at in range(4):
        terms, _ = run(at)
        np.testing.assert_allclose(
            terms["disc"]["r1"], every * 5.0 * np.sum(w**2) if at % every == 0 else 0.0, rtol=1e-5
        )

    def r1(params, at):
        return task.loss(
            params,
            Fixed(jnp.int32(at), jnp.int32(at), state.extra, state.averages),
            batch,
            jax.random.key(0),
        )[0]["disc"]["r1"]

    slope = jax.jit(jax.grad(r1))(state.params, 0)
    np.testing.assert_allclose(
        slope["disc"]["patch"]["kernel"][..., 1:, :], every * 10 * w, rtol=1e-5
    )
    assert not np.any(slope["disc"]["patch"]["kernel"][..., :1, :]) and not any(
        np.any(g) for g in jax.tree.leaves(slope["gen"])
    )


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


def count(function, *arguments) -> float:
    """Floating-point operations of the compiled program, by XLA."""
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("remat", [False, True])
def test_one_pass_of_the_generator_and_less_than_three_of_the_discriminator(remat):
    """XLA's count for the gradient: published are three evaluations of D; the two on G(x) share
    their forward pass here.
    """
    config = settings(task__discriminator__width=8)
    generator, critic = (
        Generator(width=8, remat=remat),
        discriminator(config.task.discriminator, SPEC, "f32"),
    )
    task, batch, _, state = start(config, generator)
    fixed = Fixed(jnp.int32(0), jnp.int32(0), state.extra, state.averages)
    total = count(
        lambda p: pull_back(task, p, fixed, batch, jax.random.key(0))[:2],
        state.params,
    )

    def judge(disc, image):
        return critic.apply(
            {"params": disc}, jnp.concatenate([batch["input"], image], -1), train=True
        )

    def generate(gen):
        return generator.apply({"params": gen}, batch["input"], train=True)

    disc, y = state.params["disc"], batch["target"]
    back = jax.tree.map(jnp.ones_like, judge(disc, y))
    forward = count(judge, disc, y)
    once = count(lambda p: jax.vjp(generate, p)[1](y), state.params["gen"])
    for_generator = count(
        lambda d, image, b: jax.vjp(lambda i: judge(d, i), image)[1](b), disc, y, back
    )
    for_discriminator = count(
        lambda d, image, b: jax.vjp(lambda p: judge(p, image), d)[1](b), disc, y, back
    )
    assert total < once + for_generator + 2 * for_discriminator
    assert total == pytest.approx(once + for_generator + 2 * for_discriminator - forward, rel=0.03)


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
    found = "\n".join(
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
        assert word in found
    with pytest.raises(UserError, match="every=0"):
        optim.make(settings(groups={"gen": {"every": 0}}).optimizer, "gen", 10)
