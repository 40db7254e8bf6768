"""Terms of the two players against equilibria, penalties and costs that can be written down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol.models.discriminator import discriminator
from jaxvol.tasks import adversarial
from jaxvol.training import gradients, step
from jaxvol.types import Fixed
from tests.tasks import gans
from tests.tasks.gans import SPEC, Constant, Generator, Patches, settings, start, terms_at

quick_to_compile = gans.quick_to_compile


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
    values = {name: float(v) for name, v in {**terms["disc"], **terms["gen"], **metrics}.items()}
    assert values["real"] == pytest.approx(0.8) and values["fake"] == pytest.approx(1.2)
    assert values["adversarial"] == pytest.approx(-0.6) and values["disc/d_loss"] == pytest.approx(
        2.0
    )
    # 0.2 is above the middle, 0
    assert values["disc/accuracy_real"] == 1 and values["disc/accuracy_fake"] == 0
    shares = {name: v for name, v in values.items() if "share" in name}
    assert sum(shares.values()) == pytest.approx(1) and values["feature_matching"] == 0
    assert shares["gen/share_adversarial"] == pytest.approx(0.6 / (0.6 + values["l1"]))


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
        lambda p: gradients.pull_back(task, p, fixed, batch, jax.random.key(0))[:2],
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
