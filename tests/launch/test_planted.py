"""Planted faults turn the check red that they name; all of them, at every strength, are the
campaign launch/campaigns/fault_bench.py.
"""

import jax
import pytest

from jaxvol.diagnostics import context, engine, preflight
from jaxvol.training import sharding
from launch.campaigns import planted
from launch.campaigns.planted import catalogue, state, tables

FAULTS = {fault.name: fault for fault in catalogue.FAULTS}
QUICK = (
    "input and target shuffled",
    "augmentation on the input only",
    "NaN in the normalised input",
    "overlapping train and validation crops",
    "schedule that never reaches its maximum",
    "evaluation with raw instead of EMA weights",
    "best checkpoint chosen in the wrong direction",
    "updates of half the size",
)


def outcome(fault, strength, folder) -> engine.Outcome:
    """What the check that the fault names says of the sick run."""
    mesh, checks = sharding.one_device(), preflight.checks()
    with jax.set_mesh(mesh), planted.planted(fault, strength, mesh, folder) as ctx:
        return engine.run(ctx, {fault.check: checks[fault.check]}).outcomes[0]


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_fault_is_found(name, tmp_path):
    sick = outcome(FAULTS[name], FAULTS[name].strengths[-1], tmp_path)
    # not an ERROR: the check measured it
    assert sick.status == engine.FAIL, (sick.reason, sick.result.metrics)


def test_the_checks_of_these_faults_pass_the_healthy_run(tmp_path):
    config, mesh, known = planted.config_of("fno"), sharding.one_device(), preflight.checks()
    checks = {FAULTS[name].check: known[FAULTS[name].check] for name in QUICK}
    with jax.set_mesh(mesh):
        healthy = engine.run(context.make(config, mesh, tmp_path, config.total_steps), checks)
    reasons = [(o.name, o.reason) for o in healthy.outcomes]
    assert [o.status for o in healthy.outcomes] == [engine.PASS] * len(checks), reasons


@pytest.mark.campaign
@pytest.mark.parametrize(
    "name", [n for n in FAULTS if FAULTS[n].plant not in (state.pretrained, state.reinitialised)]
)
def test_every_planted_fault_is_found_at_its_strongest(name, tmp_path):
    assert outcome(FAULTS[name], FAULTS[name].strengths[-1], tmp_path).status in engine.RED


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_patches_what_exists_and_names_a_check(name):
    """A function that was moved or renamed would make its fault an error of the campaign."""
    fault = FAULTS[name]
    assert fault.check in preflight.checks() and fault.run in planted.healthy.VARIANTS
    known = planted.config_of(fault.run)
    for strength in fault.strengths:
        overrides, patches = fault.plant(strength)
        assert overrides or patches
        for path in overrides:
            assert path.split(".")[0] in known
        for patch in patches:
            with patch:
                pass


def test_there_are_thirty_faults_and_no_two_of_one_name():
    assert len(FAULTS) >= 30 and len(FAULTS) == len(catalogue.FAULTS)


def run(first: str, status: str, strength: str = "1.0") -> dict:
    """A run of a fault that names the check `data`."""
    fault = {"kind": "fault", "fault": "target mirrored", "run": "vnet", "check": "data"}
    return {**fault, "strength": strength, "first": first, "status": {"data": status}}


def test_a_fault_is_caught_only_by_its_own_check_and_as_the_first():
    assert tables.caught(run("data", "FAIL")) and tables.caught(run("data", "ERROR"))
    assert not tables.caught(run("fno", "FAIL")) and not tables.caught(run("data", "WARN"))
    healthy = [
        {"kind": "healthy", "run": "fno", "seed": seed, "first": "", "status": {"data": status}}
        for seed, status in enumerate(("PASS", "WARN", "FAIL", "SKIP"))
    ]
    runs = [run("", "PASS", "0.1"), run("data", "FAIL"), *healthy]
    [row] = tables.fault_rows(runs)
    assert row["caught"] == "1/2" and row["weakest caught"] == "1.0"
    assert row["missed"] == "0.1 (nothing first)" and row["wrongly red"] == ""
    [row] = tables.check_rows(runs)
    assert (row["healthy runs"], row["FAIL"], row["WARN"]) == (3, 1, 1)
    assert tables.summary(runs).startswith(
        "1 of 1 faults found at one strength or more, 1 of 2 (fault, strength) pairs; 1 of 4"
    )
    # 0 of 100: 1 - 0.05 ** (1 / 100)
    assert tables.upper(0, 100) == pytest.approx(0.0295, abs=1e-4)
