"""Volume to volume against a discriminator: a conditional GAN (Isola et al. 2017,
arXiv:1611.07004) around any model.

    generator G:      w_a adversarial(D(x, G(x))) + w_f feature matching + w_c correlation(G(x), y)
                      + sum_i w_i loss_i(G(x), y)
    discriminator D:  real(D(x, y)) + fake(D(x, G(x)))
                      + w_r / 2 E |grad_y D(x, y)|^2 at every k-th step

The terms are those of players.py and ops/adversarial.py.  Both players' terms come from ONE
evaluation of G, of D on the real pair and of D on the generated pair.  No stop_gradient keeps the
players apart: `gradients.pull_back` pulls back the terms of one objective at a time and keeps that
group's gradient alone.  The published step (arXiv:2204.12068) evaluates D three times, because it
detaches G(x) for the discriminator; here the second evaluation on the generated pair is the first
one, pulled back twice.

A discriminator that is moved before the generator, at another rate or more often is asked for in
`config.optimizer.groups` (learning_rate, clip_norm, delay, every): {"gen": {"delay": 500}} trains
the discriminator on a frozen generator first, {"gen": {"every": 2}} gives two updates of the
discriminator per update of the generator.  A masked update is computed and thrown away, so that
such a step costs what every step costs.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from jaxvol.models import discriminator
from jaxvol.ops import adversarial
from jaxvol.scores import entries
from jaxvol.tasks import players, predictors, scoring, views
from jaxvol.types import Array, Batch, Extra, Fixed, Key, Metrics, Params, PyTree, Spec, Task


def fields() -> ConfigDict:
    """Volume to volume against a discriminator (jaxvol/tasks/adversarial.py); the generator is
    config.model.

    Parameter groups gen and disc: learning rates, clip norms, update ratio and head start are
    optimizer.groups.<group>.<field>.
    """
    return ConfigDict(
        {
            "name": "adversarial",
            # voxel terms, as in jaxvol/tasks/regression.py; a weight of 0 only reports it
            "losses": (("l1", 1.0),),
            # a voxel loss is its mean over volumes averaged over cubes of these sides: (1, 2, 4)
            "resolutions": (1,),
            "discriminator": discriminator.fields(),
            # names in jaxvol/scores/metrics.py, (name, {argument: value}), or paths of functions
            "metrics": ("vrmse", "rmse", "mae", "relative_l2", "pearson", "ssim", "psnr"),
            "spectra": True,  # P(k), T(k), r(k) per box (needs cubic voxels)
            **term_fields(),
            **image_fields(),
        }
    )


def term_fields() -> dict:
    """Fields of what the two players descend."""
    return {
        # of the other terms of the generator; one of weight 0 is not computed
        "weights": ConfigDict({"adversarial": 0.2, "feature_matching": 1.0, "correlation": 0.0}),
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
        # of the adversarial weight, which is 0 before step `start` and then grows linearly for
        # `steps` steps; 0 = at once
        "ramp": ConfigDict({"start": 0, "steps": 0}),
        # gradient penalty of the discriminator, at every k-th step only, k times as strong there
        "r1": ConfigDict({"weight": 0.0, "every": 16}),
    }


def image_fields() -> dict:
    """Fields of what the discriminator sees, the same for real and generated images."""
    return {
        # r = this * C / K: the target (r < 1: the input, 1 / r) is shown floor(r) times; 0 = once
        "channel_balance": 0.0,
        # instance noise, which falls to 0 over so many steps; 0 = stays
        "noise": ConfigDict({"std": 0.0, "steps": 0}),
        "augment": ConfigDict(  # DiffAugment
            {
                # by up to this fraction of each side; wraps along periodic axes
                "translation": 0.0,
                "intensity": 0.0,  # contrast 1 +- this and brightness +- this
            }
        ),
    }


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
            f"micro_batches={config.micro_batches} would train something else; use "
            "micro_batches=1 or correlation.scope='sample'."
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

    Metrics of a training step:
        disc/{D_real, D_fake}         mean logit over scales
        disc/d_loss                   without R1
        disc/accuracy_{real, fake}    share of the logits on their side of the middle
        gen/adversarial_weight        after the ramp
        gen/share_<term>              of the sum of all terms' absolute values

    Raises UserError when a loss, metric or choice does not exist.
    """
    critic = discriminator.discriminator(config.task.discriminator, spec, config.precision)
    terms = scoring.terms(config, spec)

    def init(rng: Key, batch: Batch) -> tuple[Params, Extra]:
        x, y = (scoring.volume(config, batch, name)[:1] for name in ("input", "target"))
        gen = dict(model.init({"params": rng}, x, train=False))
        pair = adversarial.pair(x, y, config.task.channel_balance)
        disc = dict(critic.init({"params": jax.random.fold_in(rng, 1)}, pair, train=False))
        params = {"gen": gen.pop("params"), "disc": disc.pop("params")}
        return params, {"stats": {"gen": gen, "disc": disc}}

    def loss(
        params: Params, fixed: Fixed, batch: Batch, rng: Key
    ) -> tuple[dict, tuple[Metrics, Extra]]:
        return train_loss(config, spec, model, critic, terms, params, fixed, batch, rng)

    predict = scoring.network(config, spec, model, "gen")
    task = scoring.task(config, spec, init, loss, predict, reconstruction(config, spec), {})
    return dataclasses.replace(task, provides=task.provides | {"players"})


def train_loss(
    config: ConfigDict,
    spec: Spec,
    model: nn.Module,
    critic: nn.Module,
    terms: scoring.Terms,
    params: Params,
    fixed: Fixed,
    batch: Batch,
    rng: Key,
) -> tuple[dict, tuple[Metrics, Extra]]:
    """Both players' weighted terms, from one evaluation of everything; see Task.loss."""
    task, stats, mask = config.task, fixed.extra["stats"], scoring.mask(batch)
    x, y = (scoring.volume(config, batch, name) for name in ("input", "target"))
    view_key, disc_key = jax.random.split(jax.random.fold_in(rng, 1))

    def judge(memory: PyTree, pair: Array) -> tuple[players.Features, PyTree]:
        variables, rngs = {"params": params["disc"], **memory}, {"dropout": disc_key}
        return critic.apply(variables, pair, train=True, rngs=rngs, mutable=list(memory))

    variables, rngs = {"params": params["gen"], **stats["gen"]}, {"dropout": rng}
    image, gen_stats = model.apply(variables, x, train=True, rngs=rngs, mutable=list(stats["gen"]))
    view = views.make_view(config, spec, x, mask, fixed.phase_step, view_key)
    real, disc_stats = judge(stats["disc"], view(y))
    fake, disc_stats = judge(disc_stats, view(image))

    weight = players.ramped(task, fixed.phase_step)
    rows = {
        "gen": players.generator_terms(task, real, fake, weight)
        | terms(image, batch)
        | players.correlation(task, image, y, mask),
        "disc": adversarial.discriminator_loss(
            task.mode, adversarial.logits(real), adversarial.logits(fake), task.label_smoothing
        ),
    }
    means = {
        group: {name: jnp.mean(values) for name, values in of_group.items()}
        for group, of_group in rows.items()
    }
    metrics = players.readings(task, means, real, fake) | {"gen/adversarial_weight": weight}
    if task.r1.weight > 0:
        of_image = lambda image: judge(stats["disc"], view(image))[0]
        means["disc"]["r1"] = players.r1(task, of_image, y, fixed.step)
    return means, (metrics, {"stats": {"gen": gen_stats, "disc": disc_stats}})


def reconstruction(config: ConfigDict, spec: Spec) -> scoring.Terms:
    """(prediction, batch) -> the weighted terms that compare voxels, [B]: what the row `loss` sums.

    The correlation is always that of each example here: over an evaluation batch it would depend on
    its size and its padding.
    """
    terms = scoring.terms(config, spec)

    def rows(pred: Array, batch: Batch) -> dict[str, Array]:
        target, mask = scoring.volume(config, batch, "target"), scoring.mask(batch)
        correlation = players.correlation(config.task, pred, target, mask, "sample")
        return terms(pred, batch) | correlation

    return rows


baselines = functools.partial(predictors.baselines, terms_of=reconstruction)
