"""The verdict engine: what counts, what stops, what is written; and the exit statuses of the
command line.
"""

import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from jaxvol import main
from jaxvol.config import base
from jaxvol.diagnostics import context, engine, probe, report
from jaxvol.training import sharding
from jaxvol.types import Result, UserError
from tests import tiny

LIMIT = {"low": ("<", 1.0, 2.0), "high": (">", 1.0, 0.5)}


def check(rank, result, applies=True):
    """A stand-in for a check's module."""

    def diagnose(ctx):
        if isinstance(result, Exception):
            raise result
        return result

    return SimpleNamespace(
        RANK=rank,
        applies=lambda config: applies,
        diagnose=diagnose,
        MEANING={name: (f"what {name} means", f"what to do about {name}") for name in LIMIT},
        LIMITS=LIMIT,
    )


def verdict(checks, limits=None, **fields):
    """Run stand-ins under a config with other limits for all of them, or with none."""
    config = base.common()
    if limits:
        config.preflight.limits = ConfigDict({name: ConfigDict(limits) for name in checks})
    config.preflight.update(fields)
    task = SimpleNamespace(provides=frozenset(("volumes",)))
    context = SimpleNamespace(config=config.lock(), mesh=sharding.one_device(), task=task)
    return engine.run(context, checks)


@pytest.mark.parametrize(
    "low, high, status",
    [
        (0.5, 2.0, "PASS"),
        (1.0, 1.0, "PASS"),
        (1.5, 2.0, "WARN"),
        (0.5, 0.7, "WARN"),
        (2.5, 2.0, "FAIL"),
        (0.5, 0.1, "FAIL"),
        (1.5, 0.1, "FAIL"),
        (math.nan, 2.0, "FAIL"),
        (math.inf, 2.0, "FAIL"),
        (-math.inf, math.inf, "PASS"),
    ],
)
def test_a_metric_is_held_against_its_own_side(low, high, status):
    judged = verdict({"a": check(1, Result({"low": low, "high": high, "no limit": 5.0}))})
    assert judged.status == judged.outcomes[0].status == status
    assert (judged.first == "a") == (status != "PASS") == bool(judged.outcomes[0].reason)


def test_the_first_red_check_by_rank_is_the_cause():
    good, warn, bad = (
        Result({"low": 0, "high": 2}),
        Result({"low": 1.5, "high": 2}),
        Result({"low": 9, "high": 2}),
    )
    judged = verdict(
        {
            "late": check(9, bad),
            "early": check(1, warn),
            "middle": check(5, bad),
            "fine": check(0, good),
        }
    )
    assert [o.name for o in judged.outcomes] == ["fine", "early", "middle", "late"]
    assert judged.status == "FAIL" and judged.first == "middle"
    assert verdict({"b": check(2, warn), "a": check(1, good)}).first == "b"


def test_a_check_that_raises_is_an_error_and_the_others_still_run():
    judged = verdict(
        {"a": check(1, ZeroDivisionError("1 / 0")), "b": check(2, Result({"low": 0, "high": 2}))}
    )
    assert judged.status == "ERROR" and [o.status for o in judged.outcomes] == ["ERROR", "PASS"]
    assert "ZeroDivisionError: 1 / 0" in judged.outcomes[0].reason and judged.first == "a"


def test_what_is_compiled_beside_the_other_checks_belongs_to_its_own():
    """On the run's mesh, before the check itself; an error there is that check's, and the others go
    on.
    """
    events, good = [], Result({"low": 0, "high": 2})
    one, two, three = (check(rank, good) for rank in (1, 2, 3))
    two.prepare = lambda ctx: events.append(jax.sharding.get_abstract_mesh().axis_names)
    two.diagnose = lambda ctx: events.append("diagnosed") or good
    three.prepare = lambda ctx: 1 / 0
    judged = verdict({"a": one, "b": two, "c": three})
    assert events == [sharding.one_device().axis_names, "diagnosed"]
    assert [o.status for o in judged.outcomes] == [
        "PASS",
        "PASS",
        "ERROR",
    ] and "ZeroDivisionError" in judged.outcomes[2].reason


def test_the_program_of_the_runs_own_batch_is_not_compiled_again(tmp_path):
    """The checks ask for it ahead of time, the train loop calls it: one program."""
    config = tiny.get_config().lock()
    requests = []
    with jax.set_mesh(sharding.one_device()):
        ctx = context.make(config, sharding.one_device(), tmp_path, config.total_steps)
        ctx.step(probe.copy(ctx.state), ctx.batch(0), jnp.int32(0))
        jax.monitoring.register_event_duration_secs_listener(
            lambda name, _, **about: requests.append(name)
        )
        ctx.trace(config.batch_size).lower().compile()
        assert not [name for name in requests if "backend_compile" in name]
        ctx.trace(2 * config.batch_size).lower().compile()
        assert [name for name in requests if "backend_compile" in name]


def test_a_check_that_measures_nothing_is_an_error_unless_it_says_why():
    """What a Result does not measure of its MEANING is absent from the run, but never all of it."""
    assert verdict({"a": check(1, Result({"low": 0}))}).status == "PASS"
    assert verdict({"a": check(1, Result({"low": 0}, absent=("high",)))}).status == "PASS"
    assert verdict({"a": check(1, Result({"low": 0}, absent=()))}).status == "ERROR"
    for nothing in (Result(), Result({"no limit": 1.0}), Result(absent=("low", "high"))):
        outcome = verdict({"a": check(1, nothing)}).outcomes[0]
        assert outcome.status == "ERROR" and "measured nothing" in outcome.reason
    misspelt = {"hihg": (">", 1.0, 0.5)}
    outcome = verdict({"a": check(1, Result({"low": 0, "high": 2}))}, limits=misspelt).outcomes[0]
    assert outcome.status == "ERROR" and "hihg" in outcome.reason


def test_skip_is_never_pass_and_never_counts():
    judged = verdict({"a": check(1, Result(skip="nothing to look at"))})
    assert judged.outcomes[0].status == "SKIP" and judged.outcomes[0].reason == "nothing to look at"
    assert "SKIP" in report.text(judged) and "nothing to look at" in report.text(judged)
    assert json.loads(json.dumps(report.as_dict(judged, {})))["checks"][0]["status"] == "SKIP"


def test_limits_come_from_the_config():
    """One that the config names takes the place of the check's own; the others stay."""
    looser = {"low": ("<", 6.0, 7.0)}
    large, both = Result({"low": 5.0, "high": 2.0}), Result({"low": 5.0, "high": 0.0})
    assert verdict({"a": check(1, large)}).status == "FAIL"
    assert verdict({"a": check(1, large)}, limits=looser).status == "PASS"
    assert verdict({"a": check(1, both)}, limits=looser).status == "FAIL"


def test_a_waived_check_does_not_stop_and_stays_visible():
    bad = Result({"low": 9, "high": 2})
    judged = verdict(
        {"a": check(1, bad), "b": check(2, Result({"low": 0, "high": 2}))}, waive=("a",)
    )
    assert judged.status == "PASS" and judged.outcomes[0].status == "FAIL" and judged.first == ""
    assert "FAIL (waived)" in report.text(judged) and "(waived)" in report.as_html(
        {"run": judged}, {}
    )
    assert report.as_dict(judged, {})["waived"] == ["a"]


def test_only_some_checks_and_names_that_do_not_exist():
    checks = {
        "a": check(1, Result({"low": 9, "high": 2})),
        "b": check(2, Result({"low": 0, "high": 2}), applies=False),
    }
    # asked for by name: it runs
    assert [o.name for o in verdict(checks, only=("b",)).outcomes] == ["b"]
    assert [o.name for o in verdict(checks).outcomes] == ["a"]
    with pytest.raises(UserError, match="typo.*a, b"):
        verdict(checks, waive=("typo",))


def test_html_is_one_file_and_escapes_what_it_is_given():
    evil = "<script>alert(1)</script>"
    judged = verdict(
        {
            "a": check(1, Result({"low": 0, "high": 2}, tables={evil: [{evil: evil}]})),
            "b": check(2, ValueError(evil)),
        }
    )
    page = report.as_html({evil: judged, "other": judged}, {"device": evil})
    assert "<script" not in page and page.count("&lt;script&gt;") >= 5
    assert "http" not in page and "src=" not in page.replace('src="data:', "")


def cli(folder, *flags):
    return main.cli(
        [
            "jaxvol",
            f"--config={tiny.__file__}",
            f"--config.data.cache_dir={folder}/cache",
            "--config.batch_size=8",
            "--config.evaluate.batch_size=8",
            f"--workdir={folder}/run",
            "--config.preflight.run=True",
            "--config.preflight.only=('environment',)",
            *flags,
        ]
    )


def test_exit_statuses_and_the_report_on_disk(tmp_path, capsys):
    impossible = "--config.preflight.limits.environment.host_memory=('>', 3.0, 2.0)"
    assert cli(tmp_path, "--mode=preflight") == 0
    assert cli(tmp_path, impossible) == 2 and not (tmp_path / "run" / "checkpoints").exists()
    printed = capsys.readouterr().out
    assert "host_memory" in printed and "waive" in printed
    assert "Pre-flight verdict: FAIL" in printed
    written = json.loads((tmp_path / "run" / "preflight" / "report.json").read_text())
    assert written["verdict"] == "FAIL" and written["first_cause"] == "environment"
    assert (
        (tmp_path / "run" / "preflight" / "report.html").read_text().startswith("<!doctype html>")
    )
    assert list((tmp_path / "run" / "preflight" / "tensorboard").glob("events*"))
    assert cli(tmp_path, impossible, "--config.preflight.waive=('environment',)") == 0
    assert cli(tmp_path, impossible) == 0  # a run that is there is not checked again
