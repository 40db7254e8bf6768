"""README and pages: paths, variants, fields and links exist; the examples in Python run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

import jaxvol
from jaxvol.config import base, command_line, experiments, validate
from jaxvol.runtime import modules
from tests import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PATH = re.compile(r"(?<![\w./-])(?:jaxvol|configs|docs|launch|tests|\.ci)/[\w./*<>-]*")
VARIANT = re.compile(r"configs/(\w+)\.py:([\w-]+)")
FIELD = re.compile(r"--config\.([a-z_0-9.]+)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
MODULE = re.compile(r"(?<![\w/.])jaxvol(?:\.\w+)+")
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)


def problems(text: str, folder: Path) -> list[str]:
    """What a page names and the checkout does not have."""
    return (
        [f"path {path}" for path in PATH.findall(text) if not exists(path)]
        + [f"link {link}" for link in LINK.findall(text) if not leads_somewhere(link, folder)]
        + [f"variant {a}:{b}" for a, b in VARIANT.findall(text) if not has_variant(a, b)]
        + [f"field {field}" for field in FIELD.findall(text) if not is_field(field)]
        + [f"module {name}" for name in MODULE.findall(text) if not is_name(name)]
    )


def exists(path: str) -> bool:
    """A file or folder of the checkout; `<name>` and `*` stand for anything."""
    pattern = re.sub(r"<\w+>", "*", path).rstrip(".-/")
    return any(ROOT.glob(pattern))


def leads_somewhere(link: str, folder: Path) -> bool:
    """An address, or a file seen from the page, and the heading in it."""
    file, _, heading = link.partition("#")
    if "://" in link:
        return True
    if not (folder / file).exists():
        return False
    lines = (folder / file).read_text().splitlines() if heading else []
    titles = [line.lstrip("# ").lower() for line in lines if line.startswith("#")]
    return not heading or heading in [re.sub(r"[^\w -]", "", t).replace(" ", "-") for t in titles]


def has_variant(name: str, variant: str) -> bool:
    """configs/<name>.py makes a config of this variant."""
    try:
        return bool(experiments.load(name).get_config(variant))
    except ValueError:
        return False


def known_fields() -> set[str]:
    """a.b.c of every field and block, those of every component included."""
    known = set()
    for name, block in base.common().items():
        known |= dotted(name, block)
    for room, name in (("models", "model"), ("data", "data"), ("tasks", "task")):
        for component in modules.choices(room):
            known |= dotted(name, base.fields(room, component))
    return known


def dotted(name: str, value) -> set[str]:
    """name, name.a, name.a.b, ..."""
    if not isinstance(value, ConfigDict):
        return {name}
    return {name}.union(*(dotted(f"{name}.{key}", inner) for key, inner in value.items()))


FIELDS = known_fields()


def is_field(name: str) -> bool:
    """A field of some config; `a.b` and the like stand for any."""
    return name.rstrip(".") in FIELDS | {"a.b", "x.y"}


def is_name(name: str) -> bool:
    """A module of jaxvol, or a function of one."""
    parts = name.split(".")
    if len(parts) == 2 and hasattr(jaxvol, parts[1]):
        return True
    path, above = ROOT.joinpath(*parts), ROOT.joinpath(*parts[:-1])
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    source = above.with_suffix(".py")
    return source.is_file() and f"\ndef {parts[-1]}(" in source.read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page):
    assert problems(page.read_text(), page.parent) == []


@pytest.mark.parametrize(
    "text, problem",
    [
        ("see `jaxvol/training/steps.py`", "path jaxvol/training/steps.py"),
        ("    python launch/bench.py", "path launch/bench.py"),
        ("[design](design.md)", "link design.md"),
        ("[here](README.md#no-such-heading)", "link README.md#no-such-heading"),
        ("--config=configs/fno.py:fast", "variant fno:fast"),
        ("--config.optimizer.rate=3", "field optimizer.rate"),
        ("python -m jaxvol.trainer", "module jaxvol.trainer"),
    ],
)
def test_a_page_that_names_something_else_is_found_out(text, problem):
    assert problems(text, ROOT) == [problem]


def test_the_readme_is_short_and_its_lines_fit():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 200
    long = [line for line in lines if len(line) > 100 and not line.startswith(("|", ">"))]
    assert long == []


def test_the_citation_is_of_this_version():
    assert f"\nversion: {jaxvol.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {jaxvol.__version__} - " in (ROOT / "CHANGELOG.md").read_text()


def examples(page: Path) -> dict[str, str]:
    """File name -> text of the examples that begin with one."""
    found = {}
    for code in PYTHON.findall(page.read_text()):
        compile(code, str(page), "exec")
        first = code.splitlines()[0]
        if first.startswith("# ") and first.endswith(".py"):
            found[first.removeprefix("# ")] = code
    return found


def write(folder: Path, page: str) -> None:
    """The examples of a page as files."""
    for name, code in examples(ROOT / page).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)


@pytest.mark.parametrize("page", ["README.md", "docs/use.md", "docs/data.md"])
def test_the_config_of_a_page_is_valid(page, tmp_path, monkeypatch):
    write(tmp_path, page)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the config's folder is added to it
    config, mode, workdir = command_line.parse(["main", "--config=mine.py"])
    validate.validate(config)
    assert (mode, workdir) == ("train", Path("runs/mine"))


@pytest.mark.slow  # test_wheel.py trains with parts of the user's own
def test_the_parts_of_the_users_own_train_and_are_checked(tmp_path):
    """The example of docs/architecture.md: dataset, model, loss, metric and check."""
    write(tmp_path, "docs/architecture.md")
    overrides = ["total_steps=4", "data.cells=8", "evaluate.figures=False"]
    overrides += ["preflight.only=('symmetry',)", "preflight.steps=2"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "jaxvol.main", "--config=mine.py"),
            *(f"--config.{override}" for override in overrides),
        ],
        cwd=tmp_path,
        env={**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "mine"
    logged = (run / "metrics.csv").read_text()
    assert "val/loss_total" in logged and "val/peak" in logged
    checks = json.loads((run / "preflight" / "report.json").read_text())["checks"]
    assert {check["name"]: check["status"] for check in checks}["symmetry"] == "PASS"
    scores = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert "peak" in scores["model"] and "peak" in scores["baselines"]["mean"]
