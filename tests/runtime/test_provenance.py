"""config.json says what ran, and is refused where it is broken."""

import json
import subprocess

import jax
import pytest

from jaxvol.config import base
from jaxvol.runtime import provenance, writer
from jaxvol.types import UserError


def test_config_json_says_what_ran(tmp_path):
    config = base.common()
    config.total_steps = 7
    writer.open_run(tmp_path, config.lock(), True)
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["format_version"] == 1 and record["config"]["total_steps"] == 7
    assert set(record["versions"]) == {
        "python",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax",
        "numpy",
        "jaxvol",
    }
    assert (
        record["versions"]["jax"] == jax.__version__
        and record["device"]["count"] == jax.device_count()
    )
    assert provenance.read_config(tmp_path / "config.json").to_json() == config.to_json()
    for text in ("", "{}", json.dumps({**record, "format_version": 99})):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match="config.json"):
            provenance.read_config(tmp_path / "config.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--workdir"):
        writer.open_run(tmp_path / "file" / "run", config, True)


def test_commit_is_that_of_the_source_tree_or_none(tmp_path, monkeypatch):
    def git(*arguments):
        return subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    source = tmp_path / "jaxvol" / "runtime" / "provenance.py"
    source.parent.mkdir(parents=True)
    source.write_text("1")
    monkeypatch.setattr(provenance, "__file__", str(source))
    assert provenance.commit() is None  # no repository
    git("init", "-q")
    assert provenance.commit() is None  # no commit
    git("add", ".")
    git("commit", "-qm", "one")
    assert provenance.commit() == git("rev-parse", "HEAD")
    source.write_text("2")
    assert provenance.commit() == git("rev-parse", "HEAD") + "-dirty"
    (tmp_path / "site-packages").mkdir()
    monkeypatch.setattr(
        provenance,
        "__file__",
        str(tmp_path / "site-packages" / "jaxvol" / "runtime" / "provenance.py"),
    )
    assert provenance.commit() is None  # installed inside somebody's repository
    monkeypatch.setattr(provenance, "__file__", str(source))
    monkeypatch.setenv("PATH", "")
    assert provenance.commit() is None  # no git
