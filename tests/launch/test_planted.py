"""Planted faults turn their own check red; all of them, at every strength, are the campaign of
launch/campaigns/fault_bench.py.
"""

import jax
import pytest

from jaxvol.diagnostics import context, engine, preflight
from jaxvol.training import sharding
from launch.campaigns import planted
from launch.campaigns.planted import (
    data as planted_data,
)
from launch.campaigns.planted import (
    later as planted_later,
)
from launch.campaigns.planted import (
    model as planted_model,
)
from launch.campaigns.planted import (
    physics as planted_physics,
)
from launch.campaigns.planted import (
    training as planted_training,
)

FAULTS = {
    fault.name: fault
    for fault in planted_data.FAULTS
    + planted_model.FAULTS
    + planted_training.FAULTS
    + planted_later.FAULTS
    + planted_physics.FAULTS
}
QUICK = (
    "input and target shuffled",
    "augmentation on the input only",
    "NaN in the normalised input",
    "overlapping train and validation crops",
    "schedule that never reaches its maximum",
    "best checkpoint chosen in the wrong direction",
    "updates of half the size",
)


def status(fault, strength, folder) -> engine.Outcome:
    """What the check that the fault names finds."""
    with (
        jax.set_mesh(sharding.one_device()),
        planted.planted(fault, strength, sharding.one_device(), folder) as seen,
    ):
        return engine.run(seen, {fault.check: preflight.checks()[fault.check]}).outcomes[0]


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_fault_is_found(name, tmp_path):
    found = status(FAULTS[name], FAULTS[name].strengths[-1], tmp_path)
    assert found.status in engine.RED, (found.reason, found.result.metrics)


def test_the_checks_of_these_faults_pass_the_healthy_run(tmp_path):
    config = planted.config_of("fno")
    checks = {
        FAULTS[name].check: preflight.checks()[FAULTS[name].check]
        for name in QUICK
        if FAULTS[name].run != "pinn"
    }
    with jax.set_mesh(sharding.one_device()):
        found = engine.run(
            context.make(config, sharding.one_device(), tmp_path, config.total_steps), checks
        )
    assert [o.status for o in found.outcomes] == [engine.PASS] * len(checks), [
        (o.name, o.reason) for o in found.outcomes
    ]


@pytest.mark.campaign
@pytest.mark.parametrize(
    "name", [n for n in FAULTS if FAULTS[n].plant.__name__ not in ("pretrained", "reinitialised")]
)
def test_every_planted_fault_is_found_at_its_strongest(name, tmp_path):
    assert status(FAULTS[name], FAULTS[name].strengths[-1], tmp_path).status in engine.RED


def test_thirty_faults_and_names_that_exist():
    assert len(FAULTS) >= 30 and {f.check for f in FAULTS.values()} <= set(preflight.checks())
    assert len({f.name for f in FAULTS.values()}) == len(FAULTS)
