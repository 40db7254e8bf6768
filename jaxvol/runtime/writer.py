"""What a run leaves in its workdir besides checkpoints: metrics.csv, perf.csv, TensorBoard,
pictures, status.json.

Only process 0 writes.  metrics.csv holds what the same command reproduces bit for bit; times and
memory go to perf.csv.

Tags: train/<group>/<term>, train/<group>/{lr,grad_norm,clipped_norm,update_norm}, val/<metric>,
      images/<name>, perf/{steps_per_sec,seconds,data_wait,host_memory,device_peak_memory}
"""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import json
import math
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter
from tqdm import tqdm

from jaxvol.runtime import atomic, memory, monitoring, provenance, weights_and_biases
from jaxvol.types import PyTree, UserError

METRICS, PERF = ("step", "tag", "value"), ("step", "tag", "value", "time")


@dataclasses.dataclass
class Writer:
    """The open files of a run.  Made by `open_run`; `resume` opens it for rows; every method is a
    no-op unless `active`.
    """

    workdir: Path
    config: ConfigDict
    active: bool
    board: SummaryWriter | None = None
    metrics: TextIO | None = None
    perf_rows: TextIO | None = None
    bar: tqdm | None = None
    wandb: Any = None  # the W&B run, if there is one
    pending: list = dataclasses.field(default_factory=list)  # texts from before `resume`
    reached: tuple[int, float] = (0, 0.0)  # step and clock of the last console line
    failed: bool = False  # the last status

    def resume(self, step: int, total: int, wandb_id: str | None = None) -> str | None:
        """Go on from the checkpoint of `step`, -1 for none: later rows are cut.  Returns the W&B
        run id, to be saved with it.
        """
        if not self.active:
            return wandb_id
        cut(self.workdir, step)
        if self.config.wandb.project:
            self.wandb = weights_and_biases.start(self.config, self.workdir, wandb_id)
        # tensorboardX names a file by the second, and would overwrite that of a run which restarts
        # within one.  Its flush() does not wait for its queue, so its thread is left to flush by
        # itself.
        self.board = SummaryWriter(
            str(self.workdir / "tensorboard"),
            purge_step=step + 1,
            flush_secs=5,
            filename_suffix=f".{time.time_ns()}",
            max_queue=0,  # no limit: a full queue would wait, see monitoring.loosen
        )
        monitoring.loosen(self.board)
        self.metrics = (self.workdir / "metrics.csv").open("a", newline="")
        self.perf_rows = (self.workdir / "perf.csv").open("a", newline="")
        start = max(step, 0)
        self.bar = tqdm(
            total=total,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )
        self.reached = (start, time.monotonic())
        for tag, text in self.pending:
            self.board.add_text(tag, text, start)
        self.status(
            {
                "state": "running",
                "step": start,
                "total": total,
                "checkpoint": step if step >= 0 else None,
            }
        )
        return self.wandb.id if self.wandb else wandb_id

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Reproducible values -> metrics.csv (`%.9g`, exact for float32), TensorBoard, W&B; losses
        also to the console.
        """
        values = {tag: float(value) for tag, value in values.items()}
        self._write(self.metrics, step, values, ())
        losses = {
            tag: value
            for tag, value in values.items()
            if tag.startswith("train/") and tag.endswith("/loss")
        }
        if losses and self.active:
            self._report(
                step,
                "  ".join(
                    f"{tag.removeprefix('train/')} {value:.4g}" for tag, value in losses.items()
                ),
            )

    def perf(self, step: int, values: dict[str, float]) -> None:
        """Times -> perf.csv with the wall-clock time (Unix, seconds), TensorBoard, W&B; memory in
        bytes is added.
        """
        values = {
            **values,
            "host_memory": memory.host_memory(),
            "device_peak_memory": memory.device_peak_memory(),
        }
        values = {
            f"perf/{tag.removeprefix('perf/')}": float(v)
            for tag, v in values.items()
            if v is not None
        }
        self._write(self.perf_rows, step, values, (f"{time.time():.3f}",))

    def images(self, step: int, pictures: dict[str, Any]) -> None:
        """Pictures ([H, W, 3] uint8, or matplotlib Figures) -> <workdir>/images/<name>_<step>.png,
        TensorBoard, W&B.
        """
        if not self.active:
            return
        from PIL import Image

        pictures = {
            f"images/{tag.removeprefix('images/')}": pixels(picture)
            for tag, picture in pictures.items()
        }
        for tag, picture in pictures.items():
            self.board.add_image(tag, picture, step, dataformats="HWC")
            file = io.BytesIO()
            Image.fromarray(picture).save(file, format="PNG")
            name = tag.removeprefix("images/").replace("/", "_")
            atomic.write_bytes(self.workdir / "images" / f"{name}_{step:08d}.png", file.getvalue())
        if self.wandb and pictures:
            import wandb

            self.wandb.log(
                {**{tag: wandb.Image(picture) for tag, picture in pictures.items()}, "step": step}
            )

    def text(self, text: str, tag: str = "parameters", step: int = 0) -> None:
        """`text` -> console, and TensorBoard as it stands (escaped, fixed width)."""
        self.console(text)
        escaped = f"<pre>{html.escape(text)}</pre>"
        if self.board is not None:
            self.board.add_text(tag, escaped, step)
        elif self.active:
            self.pending.append((tag, escaped))

    def console(self, line: str) -> None:
        """Print a line above the progress bar."""
        if self.active:
            tqdm.write(line, file=sys.stderr)

    def advance(self, step: int) -> None:
        """Move the progress bar to `step` updates done."""
        if self.bar is not None:
            self.bar.update(step - self.bar.n)

    def status(self, values: dict[str, Any]) -> None:
        """Replace status.json; nan and inf become null.  state: running | saved | finished |
        early_stopped | failed.
        """
        self.failed = values["state"] == "failed"
        stamped = {**values, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        plain = json.loads(json.dumps(stamped, default=float), parse_constant=lambda _: None)
        if self.active:
            atomic.write_text(self.workdir / "status.json", json.dumps(plain, indent=1))

    def close(self) -> None:
        """Close every file; a W&B run is marked as failed if the last status was."""
        for file in (self.bar, self.board, self.metrics, self.perf_rows):
            if file is not None:
                file.close()
        if self.wandb:
            self.wandb.finish(exit_code=int(self.failed))

    def _write(self, file: TextIO, step: int, values: dict[str, float], more: tuple) -> None:
        if not self.active:
            return
        csv.writer(file, lineterminator="\n").writerows(
            (step, tag, f"{value:.9g}", *more) for tag, value in values.items()
        )
        file.flush()
        for tag, value in values.items():
            self.board.add_scalar(tag, value, step)
        if self.wandb:
            self.wandb.log({**values, "step": step})

    def _report(self, step: int, losses: str) -> None:
        if not self.bar.disable:
            return self.bar.set_postfix_str(losses)
        (before, then), now = self.reached, time.monotonic()
        self.reached, total = (step, now), self.bar.total
        rate = max(step - before, 1) / max(now - then, 1e-9)
        self.console(
            f"step {step}/{total}  {losses}  {rate:.3g} steps/s  ETA "
            f"{tqdm.format_interval((total - step) / rate)}"
        )


def open_run(workdir: str | Path, config: ConfigDict, active: bool) -> Writer:
    """Make the workdir and its config.json.  Raises UserError if it cannot be written."""
    workdir = Path(workdir)
    if active:
        try:
            provenance.write_config(workdir, config)
        except OSError as error:
            raise UserError(
                f"The workdir {workdir} cannot be written ({error}). Choose another with --workdir."
            ) from error
    return Writer(workdir, config, active)


def cut(workdir: str | Path, step: int) -> None:
    """Remove the rows of metrics.csv after `step`, and what a kill left half-written in metrics.csv
    and perf.csv.
    """

    def keep(line: bytes, columns: int, last: float) -> bool:
        try:
            fields = next(csv.reader([line.decode()], strict=True))
            # a value without its newline may have lost digits
            whole = line.endswith(b"\n") and len(fields) == columns
            return whole and int(fields[0]) <= last
        except (ValueError, csv.Error, StopIteration):
            return False

    for name, columns, last in (("metrics.csv", METRICS, step), ("perf.csv", PERF, math.inf)):
        path = Path(workdir) / name
        old = path.read_bytes() if path.exists() else b""
        rows = [line for line in old.splitlines(keepends=True) if keep(line, len(columns), last)]
        new = (",".join(columns) + "\n").encode() + b"".join(rows)
        if new != old:
            atomic.write_bytes(path, new)


def pixels(picture: Any) -> np.ndarray:
    """[H, W, 3] uint8 of an array or a matplotlib Figure."""
    if hasattr(picture, "savefig"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(picture)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(
            f"a picture has to be [H, W, 3] uint8, not {picture.shape} {picture.dtype}"
        )
    return picture


def table(params: PyTree) -> str:
    """Parameters per module (`group/module`) and their total; a complex number counts as two
    reals.
    """
    rows: dict[str, list[int]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(
            path[:2] if len(path) > 2 else path[:1], simple=True, separator="/"
        )
        row = rows.setdefault(name, [0, 0])
        row[0] += leaf.size * (2 if np.issubdtype(leaf.dtype, np.complexfloating) else 1)
        row[1] += leaf.size * leaf.dtype.itemsize
    rows["total"] = [sum(row[i] for row in rows.values()) for i in (0, 1)]
    lines = [("module", "parameters", "MiB")] + [
        (name, f"{n:,}", f"{size / 2**20:.3f}") for name, (n, size) in rows.items()
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    return "\n".join(f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in lines)
