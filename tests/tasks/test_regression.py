"""The regression task and its baselines against what is known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from jaxvol.config import base
from jaxvol.ops import normalise, spectra
from jaxvol.scores import baselines as trivial
from jaxvol.tasks import regression
from jaxvol.types import Field, Fixed, Spec, UserError

N, SPACING = 16, 4.0


def settings(**task):
    config = ConfigDict({"precision": "f32", "task": base.task("regression")})
    config.task.update(task)
    return config.lock()


def make_spec(inputs=("x",), targets=("y",), shape=(N, N, N), periodic=(True, True, True)):
    chain = normalise.fit(
        (("standardise", {}),), [3 * np.random.default_rng(9).normal(size=(500, len(targets))) + 5]
    )
    shift = normalise.fit((("linear", {"low": -2.0, "high": 6.0}),), [np.zeros((1, len(inputs)))])
    return Spec(
        {
            "input": Field(tuple(inputs), normaliser=shift),
            "target": Field(tuple(targets), normaliser=chain),
        },
        shape,
        (SPACING,) * 3,
        periodic=periodic,
    )


def to_batch(spec, x, y, **leaves):
    fields = {"input": x, "target": y}
    return {
        k: np.asarray(normalise.forward(spec.fields[k].normaliser, v), np.float32)
        for k, v in fields.items()
    } | leaves


def filter_field(x, curve):
    """x [B, D, H, W] with every mode multiplied by curve(|k|)."""
    k = np.array(spectra.wavenumber(x.shape[1:], tuple(SPACING * n for n in x.shape[1:])))
    return np.fft.irfftn(curve(k) * np.fft.rfftn(x, axes=(1, 2, 3)), x.shape[1:], axes=(1, 2, 3))


def curve(k):
    return 0.3 + 2 * np.exp(-2 * k)


class Net(nn.Module):
    """A network with batch statistics and dropout."""

    channels: int = 1

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(4)(x))
        return nn.Dense(self.channels)(nn.Dropout(0.5, deterministic=not train)(x))


def evaluate(entry, batch):
    task, params, extra = entry
    rows = jax.jit(task.evaluate)(params, extra, batch, jax.random.key(0))
    return task.summarize({k: np.asarray(v) for k, v in rows.items()})


def test_wiener_filter_reaches_the_analytic_error():
    """target = W(k) x + noise: a linear filter leaves the noise, VRMSE^2 = var(noise) /
    var(target), and T(k) = W(k).
    """
    config, spec = settings(), make_spec()
    rng = np.random.default_rng(0)
    x = filter_field(rng.normal(size=(24, N, N, N)), lambda k: (0.2 + k) ** -1.0)
    noise = 0.5 * rng.normal(size=x.shape)
    y = 5 + filter_field(x - x.mean(), curve) + noise
    x, y, noise = (f[..., None].astype(np.float32) for f in (x, y, noise))
    train = [
        to_batch(spec, x[i : i + 4], y[i : i + 4], _mask=np.ones(4, np.float32))
        for i in range(0, 16, 4)
    ]
    train[0]["target"][0], train[0]["_mask"][0] = 1e3, 0  # padding is no training example
    baselines = regression.baselines(config, spec, iter(train))
    assert list(baselines) == ["mean", "identity", "wiener"]
    test = to_batch(spec, x[16:], y[16:])
    scores = {name: evaluate(entry, test) for name, entry in baselines.items()}

    best = np.mean(np.sqrt(np.var(noise[16:], axis=(1, 2, 3)) / np.var(y[16:], axis=(1, 2, 3))))
    assert 1 <= scores["wiener"]["vrmse"] / best < 1.02
    assert scores["wiener"]["vrmse"] < 0.7 * min(
        scores["identity"]["vrmse"], scores["mean"]["vrmse"]
    )
    fitted = baselines["wiener"][1]["net"]
    # one normalised unit is 4 physical ones
    scale = 4.0 if scores["wiener"]["fit"]["input"] == "normalised" else 1.0
    # the filter lies between powers of two of the fields' sizes
    scale *= trivial.units(spec, "input") if scale == 1 else 1
    scale /= trivial.units(spec, "target")
    # shells of more than a few modes
    many = slice(3, -1)
    np.testing.assert_allclose(
        fitted["transfer"][many, 0, 0] / scale, curve(np.asarray(fitted["k"][many])), rtol=0.04
    )
    assert abs(scores["wiener"]["fit"]["training_vrmse"]["physical"] / best - 1) < 0.05

    y_mean = y[1:16].mean()
    rms = np.sqrt(np.mean((y[16:] - y_mean) ** 2, axis=(1, 2, 3, 4)))
    np.testing.assert_allclose(scores["mean"]["rmse"], rms.mean(), rtol=1e-4)
    np.testing.assert_allclose(scores["mean"]["vrmse"], 1, atol=0.03)
    assert scores["mean"]["pearson"] == 0 and not any(
        np.any(scores["mean"]["spectra"][name]) for name in "Tr"
    )
    rms = np.sqrt(np.mean((x - y)[16:] ** 2, axis=(1, 2, 3, 4)))
    np.testing.assert_allclose(scores["identity"]["rmse"], rms.mean(), rtol=1e-4)


def test_wiener_chooses_the_input_that_predicts_better():
    """The target is linear in log(1 + x), which is what the network sees: the filter must take
    that, and be exact.
    """
    spec = make_spec()
    log = normalise.fit(
        (("log1p", {"floor": -0.99}), ("standardise", {})), [np.ones((3, 1)), np.zeros((2, 1))]
    )
    spec = Spec(
        {**spec.fields, "input": Field(("x",), normaliser=log)},
        spec.shape,
        spec.spacing,
        periodic=spec.periodic,
    )
    g = filter_field(
        np.random.default_rng(1).normal(size=(4, N, N, N)), lambda k: 4 * np.exp(-2 * k)
    )
    batch = to_batch(spec, np.expm1(g)[..., None], 2 * g[..., None] - 1)
    entry = regression.baselines(settings(), spec, [batch])["wiener"]
    score = evaluate(entry, batch)
    assert (
        score["fit"]["input"] == "normalised"
        and score["vrmse"] < 1e-3 < score["fit"]["training_vrmse"]["physical"]
    )
    np.testing.assert_allclose(
        normalise.inverse(spec.fields["target"].normaliser, entry[0].predict(*entry[1:], batch)),
        2 * g[..., None] - 1,
        atol=2e-2,
    )


def test_wiener_of_several_channels_flat_boxes_and_missing_voxels():
    """y = (a * x_1 - b * x_2, x_2) on 2D fields without periodicity needs both channels; NaN-marked
    voxels must not spoil it.
    """
    shape = (1, 12, 10)
    spec = make_spec("pq", "yz", shape, (False,) * 3)
    x = np.random.default_rng(2).normal(size=(12, *shape, 2)) * (1, 100)
    y = np.stack([filter_field(x[..., 0], curve) - 0.05 * x[..., 1], x[..., 1]], -1) + 7
    mask = np.ones((12, *shape, 1), np.float32)
    batch = to_batch(spec, x, y, mask=mask)
    baselines = regression.baselines(settings(), spec, [batch])
    score = evaluate(baselines["wiener"], batch)
    assert score["vrmse"] < 0.05 and "spectra" not in score
    mask[:, :, :1] = 0
    batch = to_batch(spec, x, y, mask=mask)
    for name in ("input", "target"):
        batch[name] = np.where(mask > 0, batch[name], 0)
    masked = evaluate(regression.baselines(settings(), spec, [batch])["wiener"], batch)
    assert masked["vrmse"] < 0.5 and np.isfinite(masked["loss"])


def test_identity_of_identical_fields():
    spec = make_spec()
    x = np.random.default_rng(3).normal(size=(2, N, N, N, 1))
    baselines = regression.baselines(settings(), spec, [to_batch(spec, x, x)])
    score = evaluate(baselines["identity"], to_batch(spec, x, x))
    assert score["vrmse"] < 1e-5 and score["rmse"] < 1e-5
    np.testing.assert_allclose(score["spectra"]["T"], 1, rtol=1e-5)
    np.testing.assert_allclose(score["spectra"]["r"], 1, rtol=1e-5)
    assert "identity" not in regression.baselines(
        settings(), make_spec("pq"), [to_batch(make_spec("pq"), np.tile(x, 2), x)]
    )


def test_training_loss_statistics_and_dropout():
    config = settings(losses=(("mse", 2.0), ("l1", 0.5)))
    spec, rng = make_spec(), np.random.default_rng(4)
    batch = to_batch(spec, *(rng.normal(size=(2, N, N, N, 1)) for _ in range(2)))
    batch["mask"] = np.ones((2, N, N, N, 1), np.float32)
    batch["mask"][:, 4:] = 0
    net = Net()
    task = regression.make(config, spec, net)
    params, extra = jax.jit(task.init)(jax.random.key(0), batch)
    fixed = Fixed(jnp.int32(0), jnp.int32(0), extra, {"params": params, "stats": extra["stats"]})
    loss = jax.jit(task.loss)
    terms, (_, changed) = loss(params, fixed, batch, jax.random.key(1))
    pred, stats = net.apply(
        {"params": params["net"], **extra["stats"]["net"]},
        batch["input"],
        train=True,
        rngs={"dropout": jax.random.key(1)},
        mutable=["batch_stats"],
    )
    error = np.asarray(pred - batch["target"])[:, :4]
    np.testing.assert_allclose(terms["net"]["mse"], 2 * np.mean(error**2), rtol=1e-5)
    np.testing.assert_allclose(terms["net"]["l1"], 0.5 * np.mean(np.abs(error)), rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), changed, {"stats": {"net": stats}}
    )
    # dropout is on
    assert loss(params, fixed, batch, jax.random.key(2))[0]["net"]["mse"] != terms["net"]["mse"]
    np.testing.assert_allclose(
        task.predict(params, changed, batch),
        net.apply({"params": params["net"], **stats}, batch["input"], train=False),
        rtol=1e-5,
        atol=1e-5,
    )


def test_rows_are_physical_and_spectra_summed_over_boxes():
    config, spec = settings(metrics=("rmse", "vrmse")), make_spec()
    x, y = np.random.default_rng(5).normal(size=(2, 3, N, N, N, 1)) * np.array([1, 2, 3]).reshape(
        3, 1, 1, 1, 1
    )
    batch = to_batch(spec, x, y)
    task = regression.make(config, spec, Net())
    params, extra = task.init(jax.random.key(0), batch)
    rows = {
        k: np.asarray(v)
        for k, v in jax.jit(task.evaluate)(params, extra, batch, jax.random.key(0)).items()
    }
    pred = np.asarray(
        normalise.inverse(spec.fields["target"].normaliser, task.predict(params, extra, batch))
    )
    np.testing.assert_allclose(
        rows["rmse"], np.sqrt(np.mean((pred - y) ** 2, axis=(1, 2, 3, 4))), rtol=1e-4
    )
    error = np.asarray(task.predict(params, extra, batch)) - batch["target"]
    np.testing.assert_allclose(rows["loss"], np.mean(error**2, axis=(1, 2, 3, 4)), rtol=1e-4)
    p_pred, p_true, p_cross = (
        np.asarray(p)[..., 0] for p in spectra.spectra(pred, y, spec.box_size)
    )
    summary = task.summarize(rows)
    np.testing.assert_allclose(
        summary["spectra"]["T"], np.sqrt(p_pred.sum(0) / p_true.sum(0)), rtol=1e-4
    )
    np.testing.assert_allclose(
        summary["spectra"]["r"], p_cross.sum(0) / np.sqrt(p_pred.sum(0) * p_true.sum(0)), atol=1e-4
    )
    np.testing.assert_allclose(
        summary["spectra"]["T_std"], np.std(np.sqrt(p_pred / p_true), axis=0), rtol=1e-3
    )
    assert summary["spectra"]["window"] == "none" and len(summary["spectra"]["k"]) == N // 2 - 1
    np.testing.assert_allclose(summary["vrmse"], rows["vrmse"].mean(), rtol=1e-6)

    undefined = task.summarize(rows | {"vrmse": np.array([1.0, np.nan, 3.0])})
    assert undefined["vrmse"] == 2.0 and undefined["vrmse_count"] == 2
    broken = task.summarize(
        rows | {"vrmse": np.array([1.0, np.nan, 3.0]), "loss": np.array([1.0, np.nan, 3.0])}
    )
    assert np.isnan(broken["vrmse"]) and np.isnan(broken["loss"])


def test_one_clear_error():
    spec = make_spec()
    batch = to_batch(spec, *np.zeros((2, 1, N, N, N, 1)))
    with pytest.raises(UserError, match="config.task.losses.*mse"):
        regression.make(settings(losses=(("msee", 1.0),)), spec, Net())
    with pytest.raises(UserError, match="config.task.metrics.*vrmse"):
        regression.make(settings(metrics=("vrmsee",)), spec, Net())
    with pytest.raises(UserError, match="each name once"):
        regression.make(settings(losses=(("mse", 1.0), ("mse", 2.0))), spec, Net())
    with pytest.raises(UserError, match="no training example"):
        regression.baselines(settings(), spec, [])
    task = regression.make(settings(), spec, Net(2))
    params, extra = task.init(jax.random.key(0), batch)
    with pytest.raises(UserError, match="1 output channel"):  # would broadcast silently
        task.evaluate(params, extra, batch, jax.random.key(0))
