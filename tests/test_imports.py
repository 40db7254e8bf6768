"""The architecture, read from the source; every rule is shown to fail on a bad example."""

import importlib
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests import ROOT
from tests.architecture import (
    TEXTS,
    circles,
    configs_by_attribute,
    direction,
    files,
    importlib_only_in_modules,
    length,
    no_machine_paths,
    no_other_framework,
    no_pickles,
    ops_know_nothing_of_learning,
    parses,
    updates_only_in_step,
)

SOURCE_RULES = [
    parses,
    direction,
    ops_know_nothing_of_learning,
    importlib_only_in_modules,
    updates_only_in_step,
    no_other_framework,
    no_pickles,
    configs_by_attribute,
    length,
]


@pytest.mark.parametrize("rule", SOURCE_RULES, ids=lambda rule: rule.__name__)
def test_source(rule: Callable[[str, str], list[str]]):
    problems = [
        p for path in files(".py") for p in rule(path, (ROOT / path).read_text(encoding="utf-8"))
    ]
    assert not problems, "\n" + "\n".join(problems)


def test_no_module_imports_itself_through_others():
    texts = {
        path: (ROOT / path).read_text(encoding="utf-8")
        for path in files(".py")
        if path.startswith("jaxvol/")
    }
    assert circles(texts) == []
    loop = {"jaxvol/a.py": "from jaxvol import b", "jaxvol/b.py": "from jaxvol.a import x"}
    assert circles({"jaxvol/__init__.py": "", **loop}) == [["jaxvol.a", "jaxvol.b"]]


@pytest.mark.parametrize("command", [("check",), ("format", "--check")], ids=" ".join)
def test_the_linter_and_the_formatter_have_nothing_to_say(command):
    ruff = [sys.executable, "-m", "ruff", *command, "--quiet", str(ROOT)]
    done = subprocess.run(ruff, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_no_machine_paths():
    problems = [
        p
        for path in files(*TEXTS)
        for p in no_machine_paths(path, (ROOT / path).read_text(encoding="utf-8"))
    ]
    assert not problems, "\n" + "\n".join(problems)


def test_every_module_imports():
    for path in files(".py"):
        if path.startswith("jaxvol/"):
            importlib.import_module(
                path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
            )


BAD = [
    (parses, "jaxvol/ops/a.py", "def f(:\n"),
    (direction, "jaxvol/ops/a.py", "from jaxvol import losses"),
    (direction, "jaxvol/ops/a.py", "def f():\n    import jaxvol.models.fno as fno"),
    (direction, "jaxvol/ops/a.py", "from ..data import pipeline"),
    (direction, "jaxvol/models/a.py", "from .. import tasks"),
    (direction, "jaxvol/scores/losses.py", "from jaxvol.data import pipeline"),
    (direction, "jaxvol/config/base.py", "from configs import fno"),
    (direction, "configs/a.py", "from tests import toys"),
    (direction, "launch/a.py", "from configs import fno"),
    (direction, "tests/a.py", "import configs.fno"),
    (direction, "jaxvol/types.py", "import jaxvol"),
    (direction, "jaxvol/training/loop.py", "from jaxvol.evaluation import report"),
    (direction, "jaxvol/training/loop.py", "from jaxvol import build"),
    (direction, "jaxvol/evaluation/report.py", "from jaxvol.diagnostics import engine"),
    (direction, "jaxvol/registry.py", "import jax"),
    (ops_know_nothing_of_learning, "jaxvol/ops/a.py", "from flax import linen as nn"),
    (importlib_only_in_modules, "jaxvol/main.py", "from importlib import import_module"),
    (importlib_only_in_modules, "jaxvol/main.py", "fno = __import__('jaxvol.models.fno')"),
    (
        updates_only_in_step,
        "jaxvol/training/loop.py",
        "params = optax.apply_updates(params, updates)",
    ),
    (updates_only_in_step, "jaxvol/tasks/a.py", "from optax import apply_updates as move"),
    (no_other_framework, "tests/a.py", "import torch.nn"),
    (no_other_framework, "jaxvol/runtime/writer.py", "from clu import metric_writers"),
    (no_pickles, "jaxvol/data/a.py", "import pickle"),
    (no_pickles, "jaxvol/data/io/weights.py", "import pickle"),
    (no_pickles, "jaxvol/data/a.py", "np.load(file, allow_pickle=True)"),
    (configs_by_attribute, "jaxvol/training/loop.py", "n = config.get('seed', 0)"),
    (configs_by_attribute, "jaxvol/training/loop.py", "n = run.config.optimizer.get('name')"),
    (
        configs_by_attribute,
        "jaxvol/training/loop.py",
        "block = config.model\nwidth = block.get('width', 3)",
    ),
    (configs_by_attribute, "jaxvol/training/loop.py", "n = getattr(config.model, 'width', 3)"),
    (length, "jaxvol/a.py", "x = 1\n" * 301),
    (length, "jaxvol/a.py", "def f():\n" + "    x = 1\n" * 60),
    (no_machine_paths, "README.md", "cd /work/checkout"),
    (no_machine_paths, "launch/a.sh", "python=/root/.pyenv/bin/python"),
    (
        no_machine_paths,
        "launch/environments/requirements-3.11.txt",
        "torch @ file:///wheels/torch.whl",
    ),
    (no_machine_paths, "configs/a.py", "path = '../shared/parity'"),
]
GOOD = [
    (
        direction,
        "jaxvol/ops/a.py",
        "from . import spectra\nfrom jaxvol.types import Array\nimport jax",
    ),
    (
        direction,
        "jaxvol/tasks/a.py",
        "from jaxvol.scores import losses\nfrom jaxvol.models import fno",
    ),
    (importlib_only_in_modules, "jaxvol/runtime/modules.py", "import importlib"),
    (updates_only_in_step, "jaxvol/training/step.py", "optax.apply_updates(params, updates)"),
    (no_pickles, "jaxvol/data/a.py", "np.load(file, allow_pickle=False)"),
    (
        configs_by_attribute,
        "jaxvol/data/io/files.py",
        "spacing = attributes.get('spacing', ())\nos.environ.get('X', '')",
    ),
    (length, "jaxvol/a.py", "def f():\n" + "    x = 1\n" * 59),
    (
        no_machine_paths,
        "README.md",
        "https://example.org/home/index.html\nruns/tmp/a\nDATA = '../shared/data\"",
    ),
]


@pytest.mark.parametrize("rule, path, text", BAD)
def test_rule_finds_a_bad_example(rule, path, text):
    found = rule(path, text)
    assert len(found) == 1 and re.match(re.escape(path) + r":\d+: ", found[0]), found


@pytest.mark.parametrize("rule, path, text", GOOD)
def test_rule_accepts_a_good_example(rule, path, text):
    assert rule(path, text) == []
