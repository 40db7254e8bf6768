"""Every fault, injected again and again, and a table of what came of it.

    python launch/campaigns/fault_campaign.py            # a quarter of an hour on two idle cores
    python launch/campaigns/fault_campaign.py --short    # half a minute: what the tests run
    python launch/campaigns/fault_campaign.py --only=disk_full --tries=5 --seed=3

"Survived": the run ended as it should and said why, and the same command then gave the bits of a
run that nobody disturbed (final parameters, moments and averages by their checksums, and
metrics.csv).  "Lost": other bits, or a sound checkpoint gone; it has to be 0.  "Recover": from the
start of the process that goes on (without Python's imports) to its first new step, median and
largest.
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
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

from launch.campaigns import fault_files as files
from launch.campaigns import fault_kills as kills
from launch.campaigns import fault_pairs as pairs
from launch.campaigns import fault_surroundings as around
from launch.campaigns.fault_lab import Lab, Try

# fault -> (function, tries of the campaign, tries of the short version)
FAULTS = {
    "SIGKILL at random steps": (kills.sigkill_at_random, 50, 1),
    "SIGKILL at every phase of a save": (kills.sigkill_in_a_save, 16, 1),
    "SIGKILL while it resumes": (kills.sigkill_while_resuming, 4, 0),
    "SIGTERM, SIGUSR1": (kills.signals, 4, 0),
    "wall-clock budget": (kills.budget, 2, 0),
    "disk full": (files.disk_full, 3, 1),
    "read-only workdir": (files.read_only, 2, 0),
    "newest checkpoint damaged": (files.damaged_checkpoint, 8, 0),
    "no checkpoint left: refused": (files.no_checkpoint_left, 2, 0),
    "two runs in one workdir": (files.two_runs, 2, 0),
    "NaN in the data": (around.nan_in_data, 2, 0),
    "NaN in a gradient": (around.nan_in_a_gradient, 3, 0),
    "NaN in one process of two": (pairs.nan_in_one_process, 2, 0),
    "cache of simulations damaged": (files.corrupted_cache, 3, 0),
    "out of memory": (around.out_of_memory, 2, 0),
    "clock jumps": (around.clock_jumps, 3, 0),
    "no display, no home": (around.no_display_no_home, 2, 0),
    "input stalled": (around.stalled_input, 2, 0),
    "one of two processes killed": (pairs.one_of_two_killed, 4, 0),
    "both processes killed": (pairs.both_killed, 2, 0),
    "killed before the first step": (pairs.killed_while_waiting, 1, 0),
}


def attempts(function: Callable, lab: Lab, tries: int) -> list[Try]:
    """What came of the tries.

    A campaign that breaks itself is a try that was not survived; other faults still get their turn.
    """
    outcomes = []
    try:
        for outcome in function(lab, tries):
            outcomes.append(outcome)
    except Exception:
        outcomes.append(Try(False, 0, math.nan, traceback.format_exc()[-600:]))
    return outcomes


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
    """The table, in Markdkills."""
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
    lines.append(
        f"| **all** | **{total['tries']}** | **{total['survived']}** | **{total['lost']}** | | |"
    )
    return "\n".join(lines)


def picture(rows: list[dict], file: Path) -> None:
    """Bars: time to recover of every fault, with how many tries survived."""
    from matplotlib.figure import Figure

    figure = Figure((8, 0.32 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    names = [r["fault"] for r in rows]
    times = [0 if math.isnan(r["recover"]) else r["recover"] for r in rows]
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


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", default="", help="names of functions: a,b,c")
    parser.add_argument("--tries", type=int, default=0, help="of every fault; 0 = as listed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", default="", help="folder for faults.json, .md and .png; other rows there are kept"
    )
    return parser.parse_args()


def main() -> int:
    """Inject the faults that were chosen; the exit status is 0 where every try survived."""
    args = arguments()
    began, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="jaxvol-faults-"))
    rows, chosen = [], [name for name in args.only.split(",") if name]
    lab = Lab(folder, args.seed)
    for name, (function, many, few) in FAULTS.items():
        tries = args.tries or (few if args.short else many)
        if not tries or (chosen and function.__name__ not in chosen):
            continue
        r = {**row(name, attempts(function, lab, tries)), "seed": args.seed}
        rows.append(r)
        print(
            f"{name:36s} tries {r['tries']:3d}  survived {r['survived']:3d}  lost {r['lost']}  "
            f"recover {r['recover']:.1f} s",
            flush=True,
        )
        for note in r["notes"]:
            print(f"    {note}", flush=True)
        if args.out:
            keep(Path(args.out), r)
    print(f"\n{text(rows)}\n\nseed {args.seed}, {time.monotonic() - began:.0f} s")
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
    by_name = {r["fault"]: r for r in (json.loads(file.read_text()) if file.exists() else [])}
    by_name[new["fault"]] = new
    rows = [by_name[name] for name in FAULTS if name in by_name]
    file.write_text(json.dumps(rows, indent=1) + "\n")
    (out / "faults.md").write_text(text(rows) + "\n")
    picture(rows, out / "faults.png")


if __name__ == "__main__":
    sys.exit(main())
