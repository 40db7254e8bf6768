"""Two players: does the discriminator get its own gradient only, does it see anything, and are the
pairs that it judges what they should be.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxvol.diagnostics import probe
from jaxvol.diagnostics.records import Context
from jaxvol.ops import adversarial as ops
from jaxvol.plots import figures
from jaxvol.training import optim
from jaxvol.types import Result, TrainState

RANK = 49
NEEDS = ("players",)
MEANING = {
    "leak": (
        "difference between the discriminator's gradient norm that the step reports and that of "
        "its own terms alone, relative",
        "the generator's loss reaches the discriminator: it would settle at (1 + 2w) / (2 + 2w) "
        "instead of one half",
    ),
    "response": (
        "largest |D(real) - D(fake)| over the first updates",
        "the discriminator gives the same answer to everything: it has collapsed, or its norm "
        "removes what differs",
    ),
    "one_sided": (
        "difference of the accuracies on real and on fake images, over the last updates",
        "the discriminator calls everything real, or everything fake: change the update ratio or "
        "the rates",
    ),
    "pairs": (
        "1 if the channels of the discriminator's pairs are not those of the definition, else 0",
        "input and image are repeated a wrong number of times: the pairs are not what "
        "task.channel_balance says",
    ),
    "generator_moves": (
        "change of the generator's parameters over the first updates, relative",
        "the generator does not move: check its delay, its rate and its terms' weights",
    ),
}
LIMITS = {
    "leak": ("<", 1e-3, 0.02),  # relative
    "response": (">", 1e-4, 1e-6),  # logits
    "one_sided": ("<", 0.9, 1.0),  # accuracies
    "pairs": ("<", 0.0, 0.0),  # 1 or 0
    "generator_moves": (">", 1e-6, 1e-9),  # relative
}


def applies(config) -> bool:
    return True


def diagnose(ctx: Context) -> Result:
    """The first update's gradient, the first `preflight.steps` updates, and the pairs of one
    labelled example.
    """
    state, history = probe.short_run(ctx)
    late = history[len(history) // 2 :]
    gap = [abs(row["disc/D_real"] - row["disc/D_fake"]) for row in history]
    accuracies = [[row["disc/accuracy_real"], row["disc/accuracy_fake"]] for row in late]
    sides = np.array(accuracies).mean(0)
    metrics = {
        "leak": leak(ctx, history),
        "response": max(gap),
        "one_sided": float(abs(sides[0] - sides[1])),
        "pairs": pairs(ctx),
    }
    if optim.settings(ctx.config.optimizer, "gen").delay == 0:
        metrics["generator_moves"] = generator_moves(ctx, state)
    real, fake = features(ctx, state)
    tables = {
        "generator's terms": [
            {
                "term": name.removeprefix("gen/share_"),
                "share of the value, first update": history[0][name],
                "last update": history[-1][name],
            }
            for name in sorted(history[0])
            if name.startswith("gen/share_")
        ],
        "balance": [{"advice": line} for line in advise(late, sides)],
        "features": compare(real, fake),
    }
    return Result(
        metrics,
        tables,
        {"players": draw(history), "features of the first example": draw_features(real, fake)},
    )


def generator_moves(ctx: Context, state: TrainState) -> float:
    """|theta - theta_0| / |theta_0| of the generator's parameters after the short run."""
    start, end = (
        jnp.concatenate([v.ravel() for v in jax.tree.leaves(s.params["gen"])])
        for s in (ctx.state, state)
    )
    return float(jnp.linalg.norm(end - start) / jnp.linalg.norm(start))


def leak(ctx: Context, history: list[dict]) -> float:
    """|reported gradient norm of the discriminator - norm of the gradient of its own terms alone|,
    relative, in update 0.
    """
    if ctx.config.micro_batches > 1:
        return 0.0
    grad = probe.group_gradients(ctx, probe.term_gradients(ctx)[0], probe.terms_of(ctx))["disc"]
    norm = float(np.sqrt(sum(np.vdot(g, g).real for g in jax.tree.leaves(grad))))
    return abs(history[0]["disc/grad_norm"] - norm) / max(norm, 1e-30)


def pairs(ctx: Context) -> float:
    """1 where the channels of `ops.adversarial.pair` are not those of the definition, else 0.

    Of an input of C channels and an image of K: r = balance C / K; r > 1 repeats the image, r < 1
    the input.
    """
    c, k = (len(ctx.spec.fields[name].channels) for name in ("input", "target"))
    balance = ctx.config.task.channel_balance
    x = jnp.broadcast_to(jnp.arange(1.0, c + 1), (1, 2, 2, 2, c))
    y = -jnp.broadcast_to(jnp.arange(1.0, k + 1), (1, 2, 2, 2, k))
    ratio = balance * c / k if balance > 0 else 1.0
    inputs = list(range(1, c + 1)) * (int(1 / ratio) if ratio < 1 else 1)
    images = [-i for i in range(1, k + 1)] * max(int(ratio), 1)
    channels = [int(v) for v in np.asarray(ops.pair(x, y, balance))[0, 0, 0, 0]]
    return float(channels != inputs + images)


def features(ctx: Context, state: TrainState) -> tuple[list, list]:
    """What every layer of the discriminator says to real and to generated images of the first
    batch: [scale][layer] -> [B, d, h, w, C].
    """

    def judged(params, fixed, batch, key):
        outputs = []

        def note(call, arguments, keywords, context):
            y = call(*arguments, **keywords)
            if not context.module.path and isinstance(y, tuple):
                outputs.append(y)
            return y

        with nn.intercept_methods(note):
            ctx.task.loss(params, fixed, batch, key)
        return outputs[:2]  # the loss judges the real images first

    real, fake = jax.jit(judged, compiler_options=probe.quick())(
        state.params, probe.fixed(ctx, ctx.config.preflight.steps), ctx.batch(0), probe.key(ctx)
    )
    return jax.device_get((real, fake))


def compare(real: list, fake: list) -> list[dict]:
    """The difference between real and generated images as a part of a feature's variation, per
    scale and layer.
    """
    return [
        {
            "scale": s,
            "layer": layer,
            "voxels": "x".join(map(str, a.shape[1:4])),
            "channels": a.shape[-1],
            "rms real": rms(a),
            "rms generated": rms(b),
            "rms difference / rms real": rms(a - b) / max(rms(a), 1e-30),
        }
        for s, pair in enumerate(zip(real, fake))
        for layer, (a, b) in enumerate(zip(*pair))
    ]


def rms(x: np.ndarray) -> float:
    """Root mean square, in float64."""
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))


def draw_features(real: list, fake: list):
    """Middle slices of the channel that differs most between a real and a generated image; one
    column per layer.
    """
    columns = max(len(scale) for scale in real)
    figure = figures.canvas(1.7 * columns + 0.6, 3.5 * len(real))
    figure.suptitle(
        "middle slices; a real and a generated image share one colour scale", fontsize=8
    )
    panels = figure.subplots(2 * len(real), columns, squeeze=False)
    for panel in panels.ravel():
        panel.set_xticks([])
        panel.set_yticks([])
        panel.axis("off")
    for s, pair in enumerate(zip(real, fake)):
        for layer, (a, b) in enumerate(zip(*pair)):
            a, b = (np.asarray(v[0, v.shape[1] // 2], np.float32) for v in (a, b))
            channel = int(np.square(a - b).sum((0, 1)).argmax())
            bounds = {
                "vmin": min(v[..., channel].min() for v in (a, b)),
                "vmax": max(v[..., channel].max() for v in (a, b)),
            }
            for row, (v, label) in enumerate(((a, "real"), (b, "generated"))):
                panel = panels[2 * s + row, layer]
                panel.axis("on")
                panel.imshow(v[..., channel], cmap="viridis", **bounds)
                panel.set_title(f"scale {s}, layer {layer}" if row == 0 else "", fontsize=8)
                if layer == 0:
                    panel.set_ylabel(label, fontsize=8)
    return figure


def advise(late: list[dict], sides: np.ndarray) -> list[str]:
    """What the balance of the last updates suggests."""
    advice = []
    if sides.min() > 0.95:
        advice.append(
            "the discriminator wins everything: lower its rate "
            "(optimizer.groups.disc.learning_rate), or add noise, label smoothing or R1"
        )
    if sides.max() < 0.55:
        advice.append(
            "the discriminator learns nothing yet: give it more updates "
            "(optimizer.groups.gen.every=2) or a higher rate"
        )
    lost = np.mean([row["disc/clipped_fraction"] for row in late])
    if lost > 0.8:
        advice.append(
            f"clipping takes {lost:.0%} of the discriminator's gradient: raise its clip_norm"
        )
    return advice or ["nothing stands out"]


def draw(history: list[dict]):
    """D on real and fake, and its accuracy."""
    figure = figures.canvas(9.5, 3.4)
    left, right = figure.subplots(1, 2)
    for panel, names, label in (
        (left, ("D_real", "D_fake"), "mean logit"),
        (right, ("accuracy_real", "accuracy_fake"), "accuracy"),
    ):
        for name, colour, dash in zip(names, figures.COLOURS, figures.DASHES):
            panel.plot(
                [row[f"disc/{name}"] for row in history],
                dash,
                color=colour,
                label=name.replace("_", " on "),
            )
        panel.set(xlabel="update", ylabel=label)
        panel.legend(fontsize=8)
    return figure
