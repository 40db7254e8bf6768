"""Volume to volume against a discriminator: a conditional GAN (Isola et al. 2017, arXiv:1611.07004)
around any model.

    generator G:      w_a adversarial(D(x, G(x))) + w_f feature matching + w_c correlation(G(x), y)
    + sum_i w_i loss_i(G(x), y)
    discriminator D:  real(D(x, y)) + fake(D(x, G(x))) + w_r / 2 E |grad_y D(x, y)|^2 at every k-th
    step

The terms are those of ops/adversarial.py.  Both players' terms come from ONE evaluation of G, of D
on the real pair and of D on the generated pair.  No stop_gradient keeps the players apart:
`step.group_gradients` pulls back the terms of one group at a time and keeps that group's gradient
alone.  The published step (arXiv:2204.12068) evaluates D three times, because it detaches G(x) for
the discriminator; here the second evaluation on the generated pair is the first one, pulled back
twice.

A discriminator that is moved before the generator, at another rate or more often is asked for in
`config.optimizer.groups` (learning_rate, clip_norm, delay, every): {"gen": {"delay": 500}} trains
the discriminator on a frozen generator first, {"gen": {"every": 2}} gives two updates of the
discriminator per update of the generator.  A masked update is computed and thrown away, so that
such a step costs what every step costs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from jaxvol.models import discriminator
from jaxvol.ops import adversarial, masked
from jaxvol.scores import entries
from jaxvol.tasks import scoring
from jaxvol.types import Array, Batch, Extra, Fixed, Key, Metrics, Params, PyTree, Spec, Task

Features = adversarial.Features
# image [B, D, H, W, K] -> what the discriminator is shown
View = Callable[[Array], Array]


def fields() -> ConfigDict:
    """Volume to volume against a discriminator (jaxvol/tasks/adversarial.py); the generator is
    config.model.

    Parameter groups gen and disc: learning rates, clip norms, update ratio and head start are
    optimizer.groups.<group>.<field>.
    """
    return ConfigDict(
        {
            "name": "adversarial",
            # voxel terms: (name in jaxvol/scores/losses.py, weight), ...; a weight of 0 only
            # reports it
            "losses": (("l1", 1.0),),
            # a voxel loss is its mean over volumes averaged over cubes of these sides, e.g. (1, 2,
            # 4)
            "resolutions": (1,),
            # of the other terms of the generator; one of weight 0 is not computed
            "weights": ConfigDict(
                {"adversarial": 0.2, "feature_matching": 1.0, "correlation": 0.0}
            ),
            "mode": "lsgan",  # lsgan | hinge
            # lsgan: the discriminator's label of real pairs is 1 - this (one-sided)
            "label_smoothing": 0.0,
            # feature matching counts the logits as a layer (Pix2PixCC; pix2pixHD does not)
            "feature_matching_logits": True,
            "correlation": ConfigDict(
                {
                    "kind": "pcc",  # pcc | ccc (concordance: mean and amplitude count as well)
                    # sample | batch: one coefficient over the whole batch, as published; needs
                    # micro_batches=1
                    "scope": "sample",
                    "scales": 1,  # volumes average-pooled 0 ... scales - 1 times
                    # zeros beyond the border count in this pooling (the published 3D code)
                    "count_padding": False,
                }
            ),
            "discriminator": discriminator.fields(),
            # r = this * C / K: the target (r < 1: the input, 1 / r) is shown floor(r) times; 0 =
            # once
            "channel_balance": 0.0,
            "ramp": ConfigDict(
                {  # of the adversarial weight, which is 0 before step `start`
                    "start": 0,
                    "steps": 0,
                }
            ),  # and then grows linearly for so many steps; 0 = at once
            "noise": ConfigDict(
                {  # instance noise on the images that the discriminator sees
                    "std": 0.0,
                    "steps": 0,
                }
            ),  # falls to 0 over so many steps; 0 = stays
            # what the discriminator sees (DiffAugment), the same for real and generated
            "augment": ConfigDict(
                {
                    # by up to this fraction of each side; wraps along periodic axes
                    "translation": 0.0,
                    "intensity": 0.0,  # contrast 1 +- this and brightness +- this
                }
            ),
            "r1": ConfigDict(
                {  # gradient penalty of the discriminator
                    "weight": 0.0,
                    "every": 16,
                }
            ),  # at every k-th step only, k times as strong there
            # names in jaxvol/scores/metrics.py
            "metrics": ("vrmse", "rmse", "mae", "relative_l2", "pearson", "ssim", "psnr"),
            "spectra": True,  # P(k), T(k), r(k) per box (needs cubic voxels)
        }
    )


def rules(config: ConfigDict) -> list[str]:
    """Violated rules of `config.task`, for jaxvol/config/validate.py."""
    task, problems = config.task, scoring.rules(config)
    for field, value, known in (
        ("mode", task.mode, adversarial.KINDS),
        ("correlation.kind", task.correlation.kind, adversarial.CORRELATIONS),
        ("correlation.scope", task.correlation.scope, adversarial.SCOPES),
    ):
        if value not in known:
            problems.append(f"task.{field} is {value!r}; it has to be one of {', '.join(known)}.")
    for field, value, low, high in (
        *((f"weights.{name}", task.weights[name], 0, 1e6) for name in task.weights),
        ("r1.weight", task.r1.weight, 0, 1e6),
        ("label_smoothing", task.label_smoothing, 0, 0.5),
        ("noise.std", task.noise.std, 0, 1e6),
        ("noise.steps", task.noise.steps, 0, 1e9),
        ("ramp.start", task.ramp.start, 0, 1e9),
        ("ramp.steps", task.ramp.steps, 0, 1e9),
        ("augment.translation", task.augment.translation, 0, 0.5),
        ("augment.intensity", task.augment.intensity, 0, 0.99),
        ("r1.every", task.r1.every, 1, 1e9),
        ("correlation.scales", task.correlation.scales, 1, 16),
    ):
        if not low <= value <= high:
            problems.append(f"task.{field} is {value}; it has to be in [{low:g}, {high:g}].")
    if task.mode == "hinge" and task.label_smoothing > 0:
        problems.append("task.label_smoothing > 0 needs mode='lsgan'; the hinge has no labels.")
    if (
        task.weights.correlation > 0
        and task.correlation.scope == "batch"
        and config.micro_batches > 1
    ):
        problems.append(
            "task.correlation.scope='batch' is no mean over examples, so "
            f"micro_batches={config.micro_batches} would "
            "train something else; use micro_batches=1 or correlation.scope='sample'."
        )
    if not entries.wrong_losses(task.losses):
        problems += [
            f"task.losses has {entry.name!r} and weights.{entry.name} is not 0: two terms of one "
            "name; keep one."
            for entry in map(entries.loss, task.losses)
            if entry.name in task.weights and task.weights[entry.name] > 0
        ]
    return problems


def make(config: ConfigDict, spec: Spec, model: nn.Module) -> Task:
    """The task of training `model` (group "gen") against the discriminator of
    `config.task.discriminator` (group "disc").

    Scores, predictions and the best checkpoint come from the generator alone, by the scoring that
    regression has; the row `loss` holds the voxel terms and the correlation (per example), never
    the adversarial ones.
    Metrics of a training step: disc/{D_real, D_fake} (mean logit over scales), disc/d_loss (without
    R1), disc/accuracy_{real, fake} (share of the logits on their side of the middle),
    gen/adversarial_weight (after the ramp), gen/share_<term> (of the sum of all terms' absolute
    values).  Raises UserError when a loss, metric or choice does not exist.
    """
    task, critic = (
        config.task,
        discriminator.discriminator(config.task.discriminator, spec, config.precision),
    )
    terms = scoring.terms(config, spec)

    def init(rng: Key, batch: Batch) -> tuple[Params, Extra]:
        x, y = (scoring.volume(config, batch, name)[:1] for name in ("input", "target"))
        gen = dict(model.init({"params": rng}, x, train=False))
        pair = adversarial.pair(x, y, task.channel_balance)
        disc = dict(critic.init({"params": jax.random.fold_in(rng, 1)}, pair, train=False))
        return {"gen": gen.pop("params"), "disc": disc.pop("params")}, {
            "stats": {"gen": gen, "disc": disc}
        }

    def loss(
        params: Params, fixed: Fixed, batch: Batch, rng: Key
    ) -> tuple[dict, tuple[Metrics, Extra]]:
        stats, mask = fixed.extra["stats"], scoring.mask(batch)
        x, y = (scoring.volume(config, batch, name) for name in ("input", "target"))
        view_key, disc_key = jax.random.split(jax.random.fold_in(rng, 1))

        def judge(memory: PyTree, shown: Array) -> tuple[Features, PyTree]:
            return critic.apply(
                {"params": params["disc"], **memory},
                shown,
                train=True,
                rngs={"dropout": disc_key},
                mutable=list(memory),
            )

        image, gen_stats = model.apply(
            {"params": params["gen"], **stats["gen"]},
            x,
            train=True,
            rngs={"dropout": rng},
            mutable=list(stats["gen"]),
        )
        view = make_view(config, spec, x, mask, fixed.step, view_key)
        real, disc_stats = judge(stats["disc"], view(y))
        fake, disc_stats = judge(disc_stats, view(image))

        weight = ramped(task, fixed.step)
        gen = (
            generator_terms(task, real, fake, weight)
            | terms(image, batch)
            | correlation(task, image, y, mask)
        )
        disc = adversarial.discriminator_loss(
            task.mode, adversarial.logits(real), adversarial.logits(fake), task.label_smoothing
        )
        found = {
            group: {name: jnp.mean(rows) for name, rows in own.items()}
            for group, own in (("gen", gen), ("disc", disc))
        }
        metrics = diagnostics(task, found, real, fake) | {"gen/adversarial_weight": weight}
        if task.r1.weight > 0:
            found["disc"]["r1"] = r1(
                task, lambda image: judge(stats["disc"], view(image))[0], y, fixed.step
            )
        return found, (metrics, {"stats": {"gen": gen_stats, "disc": disc_stats}})

    return scoring.task(
        config,
        spec,
        init,
        loss,
        scoring.network(config, spec, model, "gen"),
        reconstruction(config, spec),
        {},
    )


def reconstruction(config: ConfigDict, spec: Spec) -> scoring.Terms:
    """(prediction, batch) -> the weighted terms that compare voxels, one value per example: what
    the row `loss` sums.

    The correlation is always that of each example here: over an evaluation batch it would depend on
    its size and its padding.
    """
    terms = scoring.terms(config, spec)
    return lambda pred, batch: (
        terms(pred, batch)
        | correlation(
            config.task,
            pred,
            scoring.volume(config, batch, "target"),
            scoring.mask(batch),
            "sample",
        )
    )


baselines = functools.partial(scoring.baselines, terms_of=reconstruction)


def generator_terms(
    task: ConfigDict, real: Features, fake: Features, weight: Array
) -> dict[str, Array]:
    """The generator's weighted terms that read the discriminator, [B]; one of weight 0
    is left out.
    """
    found = {}
    if task.weights.adversarial > 0:
        found["adversarial"] = weight * adversarial.generator_loss(
            task.mode, adversarial.logits(fake)
        )
    if task.weights.feature_matching > 0:
        found["feature_matching"] = task.weights.feature_matching * adversarial.feature_matching(
            fake, real, task.feature_matching_logits
        )
    return found


def correlation(
    task: ConfigDict, pred: Array, target: Array, mask: Array | None, scope: str = ""
) -> dict[str, Array]:
    """The weighted correlation term, [B]; none if its weight is 0."""
    if task.weights.correlation == 0:
        return {}
    own = task.correlation
    rows = adversarial.correlation(
        pred, target, own.scales, own.kind, scope or own.scope, mask, own.count_padding
    )
    return {"correlation": task.weights.correlation * rows}


def ramped(task: ConfigDict, step: Array) -> Array:
    """The adversarial weight: 0 until step `ramp.start`, then linear over `ramp.steps` steps (0 =
    at once) to its full value.
    """
    since = step - task.ramp.start + 1
    return task.weights.adversarial * jnp.clip(since / max(task.ramp.steps, 1), 0.0, 1.0).astype(
        jnp.float32
    )


def r1(task: ConfigDict, features: Callable[[Array], Features], y: Array, step: Array) -> Array:
    """weight / 2 times E |grad_y D(x, y)|^2 on real pairs (Mescheder et al. 2018, arXiv:1801.04406,
    Eq. 9), at every k-th step.

    Scalar.  D = sum_s sum_p D_s,p / sqrt(P_s) over the P_s patches of scale s: the squared gradient
    is then the mean over patches of each patch's own (as far as these do not overlap), whatever the
    size of the volume.  The step at which it is evaluated counts k times (StyleGAN2,
    arXiv:1912.04958, section 3.1): the strength does not depend on k, and only these steps, chosen
    by `lax.cond`, pay for the second backward pass.
    """

    def score(image: Array) -> Array:
        return sum(
            jnp.sum(masked.promote(d)) / (d.size / d.shape[0]) ** 0.5
            for d in adversarial.logits(features(image))
        )

    def penalty() -> Array:
        slope = masked.promote(jax.grad(score)(y))
        return 0.5 * task.r1.weight * task.r1.every * jnp.sum(jnp.square(slope)) / y.shape[0]

    return jax.lax.cond(
        step % task.r1.every == 0, penalty, lambda: jnp.zeros_like(masked.promote(y).ravel()[0])
    )


def diagnostics(
    task: ConfigDict, terms: dict[str, dict[str, Array]], real: Features, fake: Features
) -> Metrics:
    """What tells whether the players are balanced; see `make`."""
    middle = 0.5 * (1 - task.label_smoothing) if task.mode == "lsgan" else 0.0
    found = {"disc/d_loss": terms["disc"]["real"] + terms["disc"]["fake"]}
    for name, features, sign in (("real", real, 1), ("fake", fake, -1)):
        scales = [masked.promote(d) for d in adversarial.logits(features)]
        found[f"disc/D_{name}"] = sum(jnp.mean(d) for d in scales) / len(scales)
        found[f"disc/accuracy_{name}"] = sum(
            jnp.mean(sign * (d - middle) > 0) for d in scales
        ) / len(scales)
    total = sum(jnp.abs(value) for value in terms["gen"].values())
    return found | {
        f"gen/share_{name}": jnp.abs(value) / jnp.where(total > 0, total, 1)
        for name, value in terms["gen"].items()
    }


def make_view(
    config: ConfigDict, spec: Spec, x: Array, mask: Array | None, step: Array, key: Key
) -> View:
    """image [B, D, H, W, K] -> (x, image) side by side, as the discriminator is shown it, [B, D, H,
    W, channels].

    Missing voxels are 0 in every image, instance noise of standard deviation std max(0, 1 - step /
    steps) is added to it (Sonderby et al. 2017, arXiv:1610.04490), and the pair is translated and
    its intensity changed (DiffAugment, Zhao et al. 2020, arXiv:2006.10738).  Real and generated
    images get the same draw: what they are matched by voxel by voxel stays matched.
    """
    task, keys = config.task, jax.random.split(key, 3)
    std = jnp.asarray(task.noise.std, jnp.float32)
    if task.noise.steps > 0:
        std = std * jnp.maximum(0.0, 1.0 - step / task.noise.steps).astype(jnp.float32)

    def view(image: Array) -> Array:
        image = masked.fill(image, mask)
        if task.noise.std > 0:
            image = image + std.astype(image.dtype) * jax.random.normal(
                keys[0], image.shape, image.dtype
            )
        shown = adversarial.pair(x.astype(image.dtype), image, task.channel_balance)
        if task.augment.translation > 0:
            shown = translate(
                shown, random_shift(keys[1], shown.shape, task.augment.translation), spec.periodic
            )
        if task.augment.intensity > 0:
            shown = change_intensity(shown, keys[2], task.augment.intensity)
        return shown

    return view


def random_shift(key: Key, shape: tuple[int, ...], fraction: float) -> Array:
    """Whole voxels along D, H, W, uniform in +-round(fraction n), for each example, [B, 3]."""
    reach = jnp.array([round(fraction * n) for n in shape[1:4]])
    return jax.random.randint(key, (shape[0], 3), -reach, reach + 1)


def translate(x: Array, shift: Array, periodic: tuple[bool, bool, bool]) -> Array:
    """x [B, D, H, W, C] with voxel i moved to i + shift [B, 3]; it wraps along periodic axes, the
    others are filled with 0.
    """
    for axis, wraps in enumerate(periodic):
        n = x.shape[axis + 1]
        if n > 1:
            source = jnp.arange(n) - shift[:, axis, None]
            x = jax.vmap(lambda volume, index, axis=axis: jnp.take(volume, index, axis))(
                x, source % n
            )
            if not wraps:
                inside = ((source >= 0) & (source < n)).reshape(
                    -1, *(n if a == axis else 1 for a in range(4))
                )
                x = jnp.where(inside, x, 0)
    return x


def change_intensity(x: Array, key: Key, strength: float) -> Array:
    """(1 + c)(x - mean) + mean + b per example, c and b uniform in +-strength, the same for all
    channels.
    """
    c, b = jax.random.uniform(key, (2, x.shape[0], 1, 1, 1, 1), x.dtype, -strength, strength)
    mean = jnp.mean(x, (1, 2, 3), keepdims=True)
    return (1 + c) * (x - mean) + mean + b
