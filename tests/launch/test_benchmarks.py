"""The benchmarks that count and measure find the parts of a run, and count what they say."""

import pytest

from launch.benchmarks import bench, gflop, memory, steps
from tests import ROOT


def test_gflop_counts_a_step_as_three_predictions():
    """Forward, and two products of the same size backward; a tiny FNO has 4 channels, 2 layers."""
    parameters, forward, update = gflop.measure(f"{ROOT}/tests/tiny.py")
    assert set(parameters) == {"net"} and parameters["net"] > 100
    assert 2.0 < update / forward < 6.0, (forward, update)


def test_memory_reads_the_collectives_of_a_program():
    program = """
  %a = f32[8,32]{1,0} all-reduce(%x), replica_groups={}
  %b = (f32[4]{0}, bf16[2,3]{1,0}) all-gather-start(%y), dimensions={0}
  %c = f32[] all-reduce(%z)
"""
    assert memory.collectives(program) == {"all-reduce": [256, 1], "all-gather": [4, 6]}


def test_memory_row_is_bad_where_a_field_is_gathered():
    row = {
        "model": "fno",
        "devices": 2,
        "size": 4,
        "temporary": 1 << 20,
        "gathered_fields": [],
        "largest_gather": 3,
        "collectives": {"all-reduce": [2, 7]},
    }
    single = {**row, "devices": 1, "temporary": 2 << 20}
    assert " 1.00 <= 1.25 ok " in memory.line(row, single)
    assert " NO " in memory.line({**row, "gathered_fields": [64]}, single)
    assert " NO " in memory.line({**row, "temporary": 2 << 20}, single)


@pytest.mark.parametrize("model", list(steps.FIELDS))
def test_every_model_of_the_step_times_can_be_made(model):
    case = {"model": model, "precision": "f32", "implementation": "auto", "size": 32}
    assert steps.model_of(case) is not None


def test_rivals_get_every_size_once_and_no_second_precision(monkeypatch):
    monkeypatch.setattr("sys.argv", ["bench.py", "--models", "fno", "vnet", "--sizes", "8", "16"])
    cases = bench.cases_of(bench.arguments(), rival=True)
    of_torch = [(c["model"], c["size"], c["precision"]) for c in cases if c["by"] == "torch"]
    assert of_torch == [(m, n, "f32") for m in ("fno", "vnet") for n in (8, 16)]
    assert len(cases) == 4 + 2 * 2 * 2 and all(case["one_thread"] for case in cases)
