"""Every fault, injected again and again, and a table of what came of it: tries, survived, lost (has
to be 0), time to recover.

    python launch/campaigns/fault_campaign.py                           all of it: about a quarter
    of an hour on two idle cores
    python launch/campaigns/fault_campaign.py --short                   half a minute there: what
    the tests run python launch/campaigns/fault_campaign.py --only=disk_full --tries=5 --seed=3

"Survived": the run ended as it should and said why, and the same command then gave the bits of a
            run that nobody disturbed (final
parameters, moments and averages by their checksums, and metrics.csv).  "Lost": other bits, or a
sound checkpoint gone.  "Recover": from the start of the process that goes on (without Python's
imports) to its first new step, median and largest.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

os.environ["XLA_FLAGS"] = ""  # one device: a run's bits depend on their number
# runs are forked from this process, which therefore has to have one thread only
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = Path(__file__).parents[2]
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import fault_cases as own  # noqa: E402
import fault_surroundings as around  # noqa: E402
from fault_lab import Lab, Try  # noqa: E402

# fault -> (function, tries of the campaign, tries of the short version)
FAULTS = {
    "SIGKILL at random steps": (own.sigkill_at_random, 50, 1),
    "SIGKILL at every phase of a save": (own.sigkill_in_a_save, 16, 1),
    "SIGKILL while it resumes": (own.sigkill_while_resuming, 4, 0),
    "SIGTERM, SIGUSR1": (own.signals, 4, 0),
    "wall-clock budget": (own.budget, 2, 0),
    "disk full": (own.disk_full, 3, 1),
    "read-only workdir": (own.read_only, 2, 0),
    "newest checkpoint damaged": (own.damaged_checkpoint, 8, 0),
    "no checkpoint left: refused": (own.no_checkpoint_left, 2, 0),
    "two runs in one workdir": (own.two_runs, 2, 0),
    "NaN in the data": (around.nan_in_data, 2, 0),
    "NaN in a gradient": (around.nan_in_a_gradient, 3, 0),
    "NaN in one process of two": (around.nan_in_one_process, 2, 0),
    "cache of simulations damaged": (around.corrupted_cache, 3, 0),
    "out of memory": (around.out_of_memory, 2, 0),
    "clock jumps": (around.clock_jumps, 3, 0),
    "no display, no home": (around.no_display_no_home, 2, 0),
    "input stalled": (around.stalled_input, 2, 0),
    "one of two processes killed": (around.one_of_two_killed, 4, 0),
    "both processes killed": (around.both_killed, 2, 0),
    "killed before the first step": (around.killed_while_waiting, 1, 0),
}


def attempts(function: Callable, lab: Lab, tries: int) -> list[Try]:
    """What came of the tries; a bench that breaks itself is a try that was not survived, and the
    other faults still get their turn.
    """
    found = []
    try:
        for one in function(lab, tries):
            found.append(one)
    except Exception:
        found.append(Try(False, 0, math.nan, traceback.format_exc()[-600:]))
    return found


def row(name: str, tries: list[Try]) -> dict:
    """One line of the table."""
    times = [t.seconds for t in tries if math.isfinite(t.seconds)]
    return {
        "fault": name,
        "tries": len(tries),
        "survived": sum(t.survived for t in tries),
        "lost": sum(t.lost for t in tries),
        "recover": statistics.median(times) if times else math.nan,
        "recover_max": max(times, default=math.nan),
        "notes": [t.note for t in tries if t.note],
    }


def text(rows: list[dict]) -> str:
    """The table, in Markdown."""
    lines = [
        "| fault | tries | survived | lost | recover, median (s) | largest (s) |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['fault']} | {r['tries']} | {r['survived']} | {r['lost']} | {r['recover']:.1f} | "
        f"{r['recover_max']:.1f} |"
        for r in rows
    ]
    total = {k: sum(r[k] for r in rows) for k in ("tries", "survived", "lost")}
    return "\n".join(
        [
            *lines,
            f"| **all** | **{total['tries']}** | **{total['survived']}** | **{total['lost']}** | | "
            "|",
        ]
    )


def picture(rows: list[dict], file: Path) -> None:
    """Bars: time to recover of every fault, with how many tries survived."""
    from matplotlib.figure import Figure

    figure = Figure((8, 0.32 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    names, times = (
        [r["fault"] for r in rows],
        [0 if math.isnan(r["recover"]) else r["recover"] for r in rows],
    )
    good = [r["survived"] == r["tries"] and not r["lost"] for r in rows]
    axes.barh(names, times, color=["#3b7dd8" if g else "#d83b3b" for g in good])
    for place, (r, seconds) in enumerate(zip(rows, times)):
        axes.text(
            seconds,
            place,
            f"  {r['survived']} of {r['tries']}, lost {r['lost']}",
            va="center",
            fontsize=8,
        )
    axes.invert_yaxis()
    axes.set_xlabel("time to recover (s, median)")
    axes.set_xlim(0, 1.25 * max([*times, 1]))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=140)


def main() -> int:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--short", action="store_true")
    arguments.add_argument("--only", default="", help="names of functions: a,b,c")
    arguments.add_argument("--tries", type=int, default=0, help="of every fault; 0 = as listed")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument(
        "--out", default="", help="folder for faults.json, .md and .png; other rows there are kept"
    )
    chosen = arguments.parse_args()
    began, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="jaxvol-faults-"))
    rows, wanted = [], [n for n in chosen.only.split(",") if n]
    lab = Lab(folder, chosen.seed)
    for name, (function, many, few) in FAULTS.items():
        tries = chosen.tries or (few if chosen.short else many)
        if tries and (not wanted or function.__name__ in wanted):
            rows.append({**row(name, attempts(function, lab, tries)), "seed": chosen.seed})
            r = rows[-1]
            print(
                f"{name:36s} tries {r['tries']:3d}  survived {r['survived']:3d}  lost {r['lost']}  "
                f"recover {r['recover']:.1f} s",
                flush=True,
            )
            for note in r["notes"]:
                print(f"    {note}", flush=True)
            if chosen.out:
                keep(Path(chosen.out), r)
    print(f"\n{text(rows)}\n\nseed {chosen.seed}, {time.monotonic() - began:.0f} s")
    good = all(r["survived"] == r["tries"] and r["lost"] == 0 for r in rows)
    if good:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"the workdirs and outputs are in {folder}", file=sys.stderr)
    return 0 if good else 1


def keep(out: Path, new: dict) -> None:
    """Put a row into the tables of `out`, in the place of an older one of that fault."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "faults.json"
    rows = {r["fault"]: r for r in (json.loads(file.read_text()) if file.exists() else [])}
    rows[new["fault"]] = new
    found = [rows[name] for name in FAULTS if name in rows]
    file.write_text(json.dumps(found, indent=1) + "\n")
    (out / "faults.md").write_text(text(found) + "\n")
    picture(found, out / "faults.png")


if __name__ == "__main__":
    sys.exit(main())
