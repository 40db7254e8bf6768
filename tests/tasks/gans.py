"""Players of an adversarial task whose truths can be written down, and the task around them."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from jaxvol.config import base
from jaxvol.tasks import adversarial
from jaxvol.training import assemble, step
from jaxvol.types import Field, Fixed, Spec
from tests import toys

N = 8
SPEC = Spec(
    {"input": Field(("x",)), "target": Field(("y",))},
    (N,) * 3,
    (1.0,) * 3,
    periodic=(True, True, False),
)


class Generator(nn.Module):
    """Convolutions in blocks that may be recomputed; `norm`: running statistics and dropout."""

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
    """A linear discriminator: each logit is a weighted sum of the 4^3 voxels of its own patch."""

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
    config.task.metrics, config.task.spectra = ("vrmse",), False
    critic = config.task.discriminator
    critic.scales, critic.width, critic.strides = 1, 4, (2, 1)
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
