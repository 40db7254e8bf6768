"""Images of fringes -> height, learned from the images alone: a network whose heights, rendered
again, give the images it was given.

    L = w_data mean |f(h) - f(I)|^2 + w_smooth mean (lap h)^2
    h = start(I) + scale network(I, start(I))

f compares images or phases (`compared` and `modelled` of ops/fringes.py), lap is the five-point
Laplacian per squared pixel, and start is the classical solution (`fringes.unwrap`) or a constant.
Each fringe is a local minimum of the images' loss: a network that starts from a constant has to be
led from long beats to short ones (config.phases over task.match), one that adds to the classical
solution begins within a fringe of the truth.  The target is read by scores only; those are of
tasks/scoring.py, in um.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from jaxvol.ops import fringes, normalise
from jaxvol.tasks import predictors, scoring
from jaxvol.types import Array, Batch, Extra, Fixed, Key, Metrics, Params, Rows, Spec, Task

STARTS = ("unwrapping", "constant")
# The network sees the roughness of the start in units of `scale`, clipped at this many: wrong
# fringes stand out.
FAR = 10.0


def fields() -> ConfigDict:
    """Height from fringe images, learned without heights (jaxvol/tasks/fringes.py)."""
    return ConfigDict(
        {
            "name": "fringes",
            # what the network adds to:
            # unwrapping (the classical solution) | constant (data.optics.centre)
            "start": "unwrapping",
            "scale": 0.1,  # um per unit of the network's output
            # () = the images | combinations of the wavelengths' phases, ((1, -1, 0, 0), ...)
            "match": (),
            "weights": ConfigDict(
                {  # of the mean squares
                    "data": 1e-4,  # in grey levels: 1 / modulation^2
                    # of the five-point Laplacian in um per squared pixel;
                    # published: 1e-4 of the weight above
                    "smooth": 3.0,
                }
            ),
            # names in jaxvol/scores/metrics.py, (name, {argument: value}), or paths of functions
            "metrics": ("relative_l2", "rmse", "mae", "mape"),
            "spectra": False,  # images have none
        }
    )


def rules(config: ConfigDict) -> list[str]:
    """Violated rules of `config.task`, for jaxvol/config/validate.py."""
    task, problems = config.task, scoring.wrong_metrics(config)
    if task.start not in STARTS:
        problems.append(f"task.start is {task.start!r}; it has to be one of {', '.join(STARTS)}.")
    if task.scale <= 0:
        problems.append(f"task.scale is {task.scale}; it has to be positive.")
    if config.data.name != "fringes":
        problems.append(f"task.name='fringes' needs data.name='fringes', not {config.data.name!r}.")
    return problems


def make(config: ConfigDict, spec: Spec, model: nn.Module) -> Task:
    """The task of training `model`, called as model(x, train=bool): the group "net".

    x: images and what is known of the start, see `network_input`.
    """
    rows, o = terms(config, spec), config.data.optics

    def heights(variables: dict, batch: Batch, **more) -> tuple[Array, dict]:
        images = recorded(config, spec, batch)
        if config.task.start == "unwrapping":
            start = fringes.unwrap(images, o.wavelengths, o.centre)
        else:
            start = jnp.full_like(images[..., 0], o.centre)
        x = network_input(config, scoring.volume(config, batch, "input"), start)
        output = model.apply(variables, x, **more)
        y, stats = output if "mutable" in more else (output, {})
        return start[..., None] + config.task.scale * y, stats

    def init(rng: Key, batch: Batch) -> tuple[Params, Extra]:
        x = scoring.volume(config, batch, "input")[:1]
        x = network_input(config, x, x[..., 0])
        variables = dict(model.init({"params": rng}, x, train=False))
        return {"net": variables.pop("params")}, {"stats": {"net": variables}}

    def loss(
        params: Params, fixed: Fixed, batch: Batch, rng: Key
    ) -> tuple[dict, tuple[Metrics, Extra]]:
        stats = fixed.extra["stats"]["net"]
        variables, training = {"params": params["net"], **stats}, {"mutable": list(stats)}
        h, stats = heights(variables, batch, train=True, rngs={"dropout": rng}, **training)
        means = {name: jnp.mean(values) for name, values in rows(h, batch).items()}
        return {"net": means}, ({}, {"stats": {"net": stats}})

    def predict(params: Params, extra: Extra, batch: Batch) -> tuple[Array, Array]:
        h, _ = heights({"params": params["net"], **extra["stats"]["net"]}, batch, train=False)
        return normalise.forward(spec.fields["target"].normaliser, h), h

    return scoring.task(config, spec, init, loss, predict, in_micrometres(rows, spec), {})


def recorded(config: ConfigDict, spec: Spec, batch: Batch) -> Array:
    """The images in grey levels, [B, 1, H, W, 4 W']."""
    return normalise.inverse(
        spec.fields["input"].normaliser, scoring.volume(config, batch, "input")
    )


def network_input(config: ConfigDict, x: Array, start: Array) -> Array:
    """The normalised images, and with a classical start its height and its roughness."""
    if config.task.start == "constant":
        return x
    o = config.data.optics
    span = fringes.reach(o.wavelengths, fringes.beats(o.wavelengths)[0]) / 2
    wide = jnp.pad(start, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    rough = jnp.clip(fringes.stencil(wide) / config.task.scale, -FAR, FAR)
    known = jnp.stack([(start - o.centre) / span, rough], -1)
    return jnp.concatenate([x, known.astype(x.dtype)], -1)


def terms(config: ConfigDict, spec: Spec) -> scoring.Terms:
    """(heights in um [B, 1, H, W, 1], batch) -> {"images", "smooth": weighted, [B]}."""
    o, task = config.data.optics, config.task
    for combination in task.match:
        # raises now, and not in the middle of a compilation
        fringes.equivalent(o.wavelengths, combination)

    def rows(h: Array, batch: Batch) -> Rows:
        h, images = h[..., 0], recorded(config, spec, batch)
        modelled = fringes.modelled(h, o.wavelengths, task.match, o.background, o.modulation)
        gap = modelled - fringes.compared(images, o.wavelengths, task.match, o.modulation)
        return {
            "images": task.weights.data * jnp.mean(jnp.sum(jnp.square(gap), -1), (1, 2, 3)),
            "smooth": task.weights.smooth * jnp.mean(jnp.square(fringes.stencil(h)), (1, 2, 3)),
        }

    return rows


def in_micrometres(rows: scoring.Terms, spec: Spec) -> scoring.Terms:
    """The same of normalised heights."""
    return lambda y, batch: rows(normalise.inverse(spec.fields["target"].normaliser, y), batch)


def baselines(
    config: ConfigDict, spec: Spec, train_batches: Iterable[dict[str, np.ndarray]]
) -> dict[str, tuple[Task, Params, Extra]]:
    """{"mean", "unwrapping", "unwrapping, smoothed": (task, params, extra)}.

    That is the training mean, and the classical solution as it is and smoothed.
    """
    o, rows = config.data.optics, in_micrometres(terms(config, spec), spec)
    heights = [
        normalise.inverse(spec.fields["target"].normaliser, batch["target"][batch["_mask"] > 0])
        for batch in train_batches
    ]
    mean = float(np.mean(np.concatenate(heights)))

    def flat(batch: Batch) -> Array:
        return jnp.full_like(batch["target"], mean)

    def unwrapped(batch: Batch) -> Array:
        return fringes.unwrap(recorded(config, spec, batch), o.wavelengths, o.centre)[..., None]

    def smoothed(batch: Batch) -> Array:
        return fringes.smoothed(unwrapped(batch)[..., 0])[..., None]

    def task(height: Callable[[Batch], Array]) -> tuple[Task, Params, Extra]:
        physical = lambda params, extra, batch: height(batch)
        return predictors.untrained(config, spec, physical, rows, {"net": {}}, {})

    return {
        "mean": task(flat),
        "unwrapping": task(unwrapped),
        "unwrapping, smoothed": task(smoothed),
    }
