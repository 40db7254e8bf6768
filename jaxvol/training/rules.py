"""Update rules: optax's, and a quasi-Newton method of our own."""

from __future__ import annotations

import jax
import optax
from jax.flatten_util import ravel_pytree

from jaxvol.config.base import RULES
from jaxvol.ops import quasi_newton
from jaxvol.types import PyTree, UserError

# parameters of a group that Broyden moves; its float64 matrix has 3.2 GB then
LARGEST = 20_000


def make_rule(config) -> optax.GradientTransformationExtraArgs:
    """The optax rule `config.name` with learning rate 1; weight decay reaches arrays with two or
    more axes only.

    AdamW: Loshchilov & Hutter, arXiv:1711.05101; Adam: Kingma & Ba, arXiv:1412.6980; Lion: Chen et
           al., arXiv:2302.06675;
    L-BFGS with a zoom line search: Nocedal & Wright, Numerical Optimization, algorithms 7.4 and
    3.5-3.6; Broyden: the whole inverse Hessian, self-scaled, for some thousand parameters
    (ops/quasi_newton.py).
    """

    def matrices(params: PyTree) -> PyTree:
        return jax.tree.map(lambda p: p.ndim >= 2, params)

    match config.name:
        case "adamw":
            f = config.adamw
            rule = optax.adamw(
                1.0, b1=f.b1, b2=f.b2, eps=f.eps, weight_decay=f.weight_decay, mask=matrices
            )
        case "adam":
            rule = optax.adam(1.0, b1=config.adam.b1, b2=config.adam.b2, eps=config.adam.eps)
        case "sgd":
            rule = optax.sgd(
                1.0, momentum=config.sgd.momentum or None, nesterov=config.sgd.nesterov
            )
        case "lion":
            f = config.lion
            rule = optax.lion(1.0, b1=f.b1, b2=f.b2, weight_decay=f.weight_decay, mask=matrices)
        case "lbfgs" | "broyden":
            if config.clip_norm > 0:
                raise UserError(
                    f"config.optimizer.clip_norm is {config.clip_norm} with name={config.name!r}; "
                    "a clipped gradient is not "
                    "that of the loss its line search evaluates. Set config.optimizer.clip_norm=0."
                )
            # A quasi-Newton step has length 1 near the minimum, so every search starts there.
            f = config[config.name]
            search = optax.scale_by_zoom_linesearch(
                f.max_linesearch_steps, initial_guess_strategy="one"
            )
            if config.name == "lbfgs":
                rule = optax.lbfgs(memory_size=f.memory_size, linesearch=search)
            else:
                rule = broyden(search)
        case _:
            raise UserError(
                f"config.optimizer.name is {config.name!r}. Use one of {', '.join(RULES)}."
            )
    return optax.with_extra_args_support(rule)


def broyden(search: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """The direction of ops/quasi_newton.py and a line search along it; UserError for a group that
    is too large for its matrix.
    """

    def init(params: PyTree) -> tuple[quasi_newton.State, PyTree]:
        flat = ravel_pytree(params)[0]
        if flat.size > LARGEST:
            raise UserError(
                f"config.optimizer.name='broyden' keeps a matrix of {flat.size:,} x {flat.size:,} "
                "numbers for this group; "
                f"it is meant for at most {LARGEST:,} parameters. Use 'lbfgs'."
            )
        return quasi_newton.start(flat), search.init(params)

    def update(grads: PyTree, state: tuple, params: PyTree, **arguments) -> tuple[PyTree, tuple]:
        grad, restore = ravel_pytree(grads)
        direction, model = quasi_newton.descend(
            state[0], ravel_pytree(params)[0], grad, ravel_pytree(state[1].grad)[0]
        )
        updates, searched = search.update(restore(direction), state[1], params, **arguments)
        return updates, (model, searched)

    return optax.GradientTransformationExtraArgs(init, update)
