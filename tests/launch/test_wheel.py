"""An installed wheel in an empty folder: what a user has who never saw the checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv

import numpy as np
import pytest

from tests import ROOT

MODEL = '''
"""A model of the user's own: two convolutions."""
import flax.linen as nn
import jax.numpy as jnp


def fields():
    return {"width": 4}  # channels


def make(config, spec):
    return Mine(config.model.width, len(spec.fields["target"].channels))


class Mine(nn.Module):
    width: int
    outputs: int

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.gelu(nn.Conv(self.width, (3, 3, 3))(x))
        return nn.Conv(self.outputs, (3, 3, 3))(x)
'''
LAB = {
    "losses.py": '''
import jax.numpy as jnp


def huber(pred, target, mask=None):
    """Mean over an example, [B]."""
    error = jnp.abs(pred - target)
    return jnp.mean(jnp.minimum(error**2, 2 * error - 1), axis=(1, 2, 3, 4))


huber.direction = "lower"


def bias(pred, target, mask=None):
    """Mean error of an example, [B]."""
    return jnp.mean(pred - target, axis=(1, 2, 3, 4))
''',
    "waves.py": """
import numpy as np
from ml_collections import ConfigDict

from jaxvol.data import pipeline, source
from jaxvol.types import Field, Spec


def fields():
    config = pipeline.fields()
    config.amplitude = 2.0  # of the target
    config.augment = ()
    return config


def make(config):
    spec = Spec({"input": Field(("x",)), "target": Field(("y",))}, (8, 8, 8), (1.0,) * 3)
    splits = {"train": 0, "val": 1, "test": 2}

    def read(split, index, rng):
        x = np.random.default_rng([splits[split], index]).normal(size=(8, 8, 8, 1))
        return {"input": x.astype(np.float32), "target": (config.data.amplitude * x).astype("f4")}

    names = lambda split: [f"{split} {i}" for i in range(4)]
    own = source.Source(spec, dict.fromkeys(splits, 4), read, names, "waves")
    return pipeline.dataset(own, config)
""",
    "doubled.py": '''
"""Regression whose loss counts twice."""
import dataclasses

import jax

from jaxvol.tasks import regression
from jaxvol.tasks.regression import baselines, fields, rules


def make(config, spec, model):
    task = regression.make(config, spec, model)

    def loss(params, fixed, batch, key):
        terms, rest = task.loss(params, fixed, batch, key)
        return jax.tree.map(lambda value: 2 * value, terms), rest

    return dataclasses.replace(task, loss=loss)
''',
    "symmetry.py": '''
"""A check: the sizes of what is carried."""
import jax

from jaxvol.types import Result

RANK = 5
MEANING = {"weights": ("number of weights", "use a model that has some")}
LIMITS = {"weights": (">", 10.0, 1.0)}


def applies(config):
    return True


def diagnose(ctx):
    return Result({"weights": float(sum(x.size for x in jax.tree.leaves(ctx.state.params)))})
''',
}
CONFIG = '''
"""An experiment of the user's own."""
from jaxvol.config import base


def get_config(variant=""):
    config = base.common()
    config.model, config.task = base.model("mymodel"), base.task("regression")
    config.data = base.data("volumes")
    config.data.input.files, config.data.target.files = "volumes/x*.npy", "volumes/y*.npy"
    config.data.layout = "single"
    config.data.split.fractions = (0.5, 0.25, 0.25)
    config.task.metrics, config.task.spectra = ("vrmse",), False
    config.total_steps, config.batch_size, config.evaluate.batch_size = 4, 2, 2
    config.log_every, config.evaluate.every, config.checkpoint.every = 2, 4, 4
    config.preflight.run, config.evaluate.figures = False, False
    return config
'''
FINISH = """

def finish(config):
    config.task.losses = (("mse", 1.0), ("mylab.losses.huber", 0.1))
    config.task.metrics = ("vrmse", "mylab.losses.huber", "mylab.losses.bias")
    config.task.spectra = False
    config.total_steps, config.batch_size, config.evaluate.batch_size = 4, 2, 2
    config.log_every, config.evaluate.every, config.checkpoint.every = 2, 4, 4
    config.preflight.checks, config.preflight.only = ("mylab.symmetry",), ("symmetry",)
    config.evaluate.figures = False
    return config
"""
SMALL = [
    "--config.data.grid=8",
    "--config.data.box_size=64.0",
    "--config.data.boxes.train=4",
    "--config.data.boxes.val=2",
    "--config.data.boxes.test=2",
    "--config.data.fit_examples=2",
    "--config.data.cache_dir=cache",
    "--config.model.modes=(2, 2, 2)",
    "--config.model.width=4",
    "--config.model.layers=2",
    "--config.total_steps=4",
    "--config.optimizer.schedule.warmup_steps=0",
    "--config.evaluate.batch_size=2",
    "--config.evaluate.every=4",
    "--config.preflight.run=False",
    "--config.evaluate.figures=False",
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """(python of a virtual environment that holds nothing of the checkout, an empty folder)."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("jaxvol", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
    subprocess.run([*pip, *build], check=True, cwd=folder)
    (wheel,) = folder.glob("jaxvol-*.whl")
    venv.create(folder / "env", symlinks=True)
    python = folder / "env" / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    install = ["install", "--no-deps", "--no-index", "--target", site, str(wheel)]
    subprocess.run([*pip, *install], check=True)
    # the packages that jaxvol needs are those of the test environment; its links to the checkout
    # are not followed, since a folder that a .pth file names has no .pth files of its own
    with open(os.path.join(site, "needs.pth"), "w") as file:
        file.write(sysconfig.get_path("purelib") + "\n")
    empty = folder / "empty"
    empty.mkdir()
    return python, empty


def run(installed, *arguments, status=0):
    python, empty = installed
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    done = subprocess.run(
        [python, *arguments], cwd=empty, env=environment, capture_output=True, text=True
    )
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_the_wheel_is_not_the_checkout(installed):
    where = run(installed, "-c", "import jaxvol, jaxvol.convert; print(jaxvol.__file__)")
    assert "env" in where and str(ROOT) not in where
    assert run(installed, "-m", "jaxvol.main", "--version").strip().startswith("jaxvol ")
    with pytest.raises(AssertionError):
        run(installed, "-c", "import configs")
    assert "configs/fno.py" in run(installed, "-m", "jaxvol.main", "--help")
    assert "nothing of that name" in run(
        installed, "-m", "jaxvol.main", "--config=configs/nothing.py", status=1
    ).replace("no experiment of that name", "nothing of that name")


def test_a_shipped_experiment_trains_where_there_is_no_checkout(installed):
    text = run(installed, "-m", "jaxvol.main", "--config=configs/fno.py:quick", *SMALL)
    assert "the experiment that comes with jaxvol" in text
    assert (installed[1] / "runs" / "fno-quick" / "evaluation" / "metrics.json").is_file()


def test_a_users_config_and_model_train_evaluate_and_predict(installed):
    _, empty = installed
    (empty / "mine.py").write_text(CONFIG)
    (empty / "mymodel.py").write_text(MODEL)
    (empty / "volumes").mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        x = rng.normal(size=(8, 8, 8)).astype(np.float32)
        np.save(empty / "volumes" / f"x{i}.npy", x)
        np.save(empty / "volumes" / f"y{i}.npy", 2 * x)
    run(installed, "-m", "jaxvol.main", "--config=mine.py")
    run(installed, "-m", "jaxvol.main", "--config=mine.py", "--mode=evaluate")
    predict = ["--mode=predict", "--config.predict.input=volumes/x0.npy"]
    run(installed, "-m", "jaxvol.main", "--config=mine.py", *predict)
    (prediction,) = (empty / "runs" / "mine" / "predictions").rglob("x0.npy")
    loaded = run(
        installed,
        "-c",
        "import numpy as np, jaxvol\n"
        "predict, config, spec = jaxvol.load('runs/mine')\n"
        "x = np.load('volumes/x0.npy')[None, ..., None]\n"
        f"assert np.allclose(predict(x)[0, ..., 0], np.load({str(prediction)!r}), atol=1e-5)\n"
        "print(config.model.name)",
    )
    assert "mymodel" in loaded


def test_every_kind_of_part_may_be_the_users_own_one_file(installed):
    """A loss, metric, dataset, task and check in a folder of the user's own, named by their paths;
    nothing else is touched.
    """
    _, empty = installed
    (empty / "mylab").mkdir()
    for name, text in LAB.items():
        (empty / "mylab" / name).write_text(text)
    (empty / "mymodel.py").write_text(MODEL)
    (empty / "parts.py").write_text(
        CONFIG.replace('base.task("regression")', 'base.task("mylab.doubled")')
        .replace('base.data("volumes")', 'base.data("mylab.waves")')
        .replace(
            "    config.data.input.files", "    return finish(config)\n    config.data.input.files"
        )
        + FINISH
    )
    text = run(installed, "-m", "jaxvol.main", "--config=parts.py")
    assert "symmetry" in text
    report = json.loads((empty / "runs" / "parts" / "preflight" / "report.json").read_text())
    assert {c["name"]: c["status"] for c in report["checks"]} == {"symmetry": "PASS"}
    scored = json.loads((empty / "runs" / "parts" / "evaluation" / "metrics.json").read_text())
    assert {"vrmse", "huber", "bias"} <= set(scored["model"])
    wrong = run(
        installed,
        "-m",
        "jaxvol.main",
        "--config=parts.py",
        "--workdir=runs/wrong",
        "--config.task.losses=(('mylab.losses.hubert', 1.0),)",
        status=1,
    )
    assert "mylab.losses.hubert" in wrong and "has no function hubert" in wrong
