"""What libraries print on their own: shown where it is an error that nobody else tells.

A full disk is told once, by `errors.explain`.  Orbax logs the traceback of a failed save besides
raising it, TensorStore calls back into an event loop that the failure closed, and tensorboardX
tries to flush its file once more at the end of Python: all three are passed over.
"""

from __future__ import annotations

import sys
import threading
import warnings
from logging import Formatter, LogRecord
from pathlib import Path

from absl import flags, logging

from jaxvol.runtime import console, errors, text

OURS = str(Path(__file__).parents[1])
# of threads of TensorStore and tensorboardX, when what they worked for has failed
AFTERMATH = ("Event loop is closed", "handle is closed")


def libraries() -> None:
    """Show our own messages, without stamps, and of other packages only errors."""
    flags.FLAGS.mark_as_parsed()  # absl's logger waits for its own flags, which we do not use
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.addFilter(wanted)  # once, however often it is added
    handler.setFormatter(Formatter("%(message)s"))
    handler.python_handler.stream = console.AboveBar()
    sys.unraisablehook = unraisable
    threading.excepthook = in_thread
    # what TensorStore leaves of a save that failed
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


def wanted(record: LogRecord) -> bool:
    """Whether a log record is shown; ours are made harmless and short."""
    if record.pathname.startswith(OURS):
        record.msg, record.args = text.message(record.getMessage()), ()
        return True
    if record.levelno < logging.converter.STANDARD_ERROR:
        return False
    error = record.exc_info[1] if record.exc_info else None
    return not (repeats(error) or errors.disk(RuntimeError(record.getMessage())))


def repeats(error: BaseException | None) -> bool:
    """Whether an error of a library tells again, or follows from, what `errors.explain` tells."""
    return error is not None and any(
        errors.disk(one) or str(one) in AFTERMATH for one in errors.chain(error)
    )


def unraisable(event: sys.UnraisableHookArgs) -> None:
    """As Python shows what it cannot raise, callbacks at its end among them."""
    if not repeats(event.exc_value):
        sys.__unraisablehook__(event)


def in_thread(event: threading.ExceptHookArgs) -> None:
    """As Python shows what ended a thread."""
    if not repeats(event.exc_value):
        threading.__excepthook__(event)
