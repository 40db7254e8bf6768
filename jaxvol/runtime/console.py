"""What a run shows on the terminal: a progress bar, and messages above it that never share its
line.

Where the terminal is a file or a pipe there is no bar: a plain line tells every EVERY per cent of
the run how far it is.
"""

from __future__ import annotations

import sys
import time
from typing import TextIO

from tqdm import tqdm

from jaxvol.runtime import text

EVERY = 1  # per cent of a run between two lines where there is no bar


class AboveBar:
    """A stream for messages: on standard error, above the progress bar where there is one."""

    def write(self, words: str) -> None:
        tqdm.write(words, file=sys.stderr, end="")

    def flush(self) -> None:
        sys.stderr.flush()

    def close(self) -> None:
        """Standard error stays open."""


def say(words: str, file: TextIO | None = None) -> None:
    """Print lines above the bar, on standard output unless `file` is given."""
    tqdm.write(text.lines(words), file=file or sys.stdout)


class Progress:
    """How far a run is, from update `start` to `total`.

    The clock starts with the first update that is done: what came before it, compilation above all,
    says nothing about how long the rest takes.
    """

    def __init__(self, start: int, total: int):
        self.total, self.step = total, start
        self.told = self.hundredth(start)
        # step and time of the last line; None before the first update
        self.reached: tuple[int, float] | None = None
        self.bar = tqdm(
            total=total,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    def hundredth(self, step: int) -> int:
        """How many times EVERY per cent are done at a step."""
        return 100 * step // max(self.total, 1) // EVERY

    def advance(self, step: int) -> None:
        """`step` updates are done."""
        self.step = step
        if self.reached is None:
            self.reached = (step, time.monotonic())
            self.restart(step)
        else:
            self.bar.update(step - self.bar.n)

    def restart(self, step: int) -> None:
        """Begin the bar's clock at `step`."""
        if not self.bar.disable:
            self.bar.reset(self.total)
            self.bar.initial = self.bar.n = self.bar.last_print_n = step
            self.bar.refresh()

    def losses(self, step: int, losses: str) -> None:
        """Show the losses of an update: beside the bar, or on a line that is due."""
        if not self.bar.disable:
            self.bar.set_postfix_str(losses)
        elif self.hundredth(step) > self.told or step >= self.total:
            self.told = self.hundredth(step)
            say(f"step {step}/{self.total}  {losses}{self.rest(step)}", sys.stderr)

    def rest(self, step: int) -> str:
        """Updates per second since the last line, and how long the rest takes at that rate."""
        (before, then), now = self.reached or (step, 0.0), time.monotonic()
        if step <= before:
            return ""
        rate = (step - before) / max(now - then, 1e-9)
        self.reached = (step, now)
        left = tqdm.format_interval((self.total - step) / rate)
        return f"  {rate:.3g} steps/s  ETA {left}"

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()
