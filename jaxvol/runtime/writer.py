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
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

from jaxvol.runtime import (
    atomic,
    console,
    errors,
    memory,
    monitoring,
    provenance,
    rows,
    weights_and_biases,
)
from jaxvol.runtime import text as texts
from jaxvol.types import PyTree, UserError

TAG = 200  # characters of a tag in metrics.csv and TensorBoard


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
    progress: console.Progress | None = None
    wandb: Any = None  # the W&B run, if there is one
    pending: list = dataclasses.field(default_factory=list)  # texts from before `resume`
    place: tuple[int, int] = (0, 0)  # device and inode of the workdir
    failed: bool = False  # the last status

    def resume(self, step: int, total: int, wandb_id: str | None = None) -> str | None:
        """Go on from the checkpoint of `step`, -1 for none: later rows are cut.  Returns the W&B
        run id, to be saved with it.
        """
        if not self.active:
            return wandb_id
        if lost := rows.missing(self.workdir, step):
            logging.warning("%s", lost)
        rows.cut(self.workdir, step)
        status = os.stat(self.workdir)
        self.place = status.st_dev, status.st_ino
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
        self.progress = console.Progress(start, total)
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
        values = {texts.plain(tag, TAG): float(value) for tag, value in values.items()}
        self._write(self.metrics, step, values, ())
        losses = {
            tag: value
            for tag, value in values.items()
            if tag.startswith("train/") and tag.endswith("/loss")
        }
        if losses and self.active:
            pairs = [(tag.removeprefix("train/"), value) for tag, value in losses.items()]
            self.progress.losses(step, "  ".join(f"{tag} {value:.4g}" for tag, value in pairs))

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

        self.check_workdir()
        pictures = {
            f"images/{texts.plain(tag.removeprefix('images/'))}": pixels(picture)
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
        if self.active:
            console.say(text, sys.stderr)
        escaped = f"<pre>{texts.page(text)}</pre>"
        if self.board is not None:
            self.board.add_text(tag, escaped, step)
        elif self.active:
            self.pending.append((tag, escaped))

    def advance(self, step: int) -> None:
        """`step` updates are done: move the progress bar."""
        if self.progress is not None:
            self.progress.advance(step)

    def moved(self) -> UserError | None:
        """What there is to say when the workdir that the run began in is no longer at its place:
        what is written there now would be half of a run.
        """
        if not self.active or self.place == (0, 0):
            return None
        try:
            status = os.stat(self.workdir)
        except OSError:
            return errors.gone(self.workdir)
        same = (status.st_dev, status.st_ino) == self.place
        return None if same else errors.gone(self.workdir)

    def check_workdir(self) -> None:
        """Raises what `moved` says."""
        if error := self.moved():
            raise error

    def status(self, values: dict[str, Any]) -> None:
        """Replace status.json; nan and inf become null.  state: running | saved | finished |
        early_stopped | failed.  Of a run that failed nothing is written where its workdir is gone.
        """
        self.failed = values["state"] == "failed"
        stamped = {**values, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        plain = json.loads(json.dumps(stamped, default=float), parse_constant=lambda _: None)
        if self.failed and self.moved():  # the user hears of it already
            return
        self.check_workdir()
        if self.active:
            atomic.write_text(self.workdir / "status.json", json.dumps(plain, indent=1))

    def close(self) -> None:
        """Close every file; a W&B run is marked as failed if the last status was."""
        for file in (self.progress, self.board, self.metrics, self.perf_rows):
            if file is not None:
                file.close()
        if self.wandb:
            self.wandb.finish(exit_code=int(self.failed))

    def _write(self, file: TextIO, step: int, values: dict[str, float], more: tuple) -> None:
        if not self.active:
            return
        self.check_workdir()
        csv.writer(file, lineterminator="\n").writerows(
            (step, tag, f"{value:.9g}", *more) for tag, value in values.items()
        )
        file.flush()
        for tag, value in values.items():
            self.board.add_scalar(tag, value, step)
        if self.wandb:
            self.wandb.log({**values, "step": step})


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
