"""Text from outside (names of files, channels and units, error messages) as it may be shown.

A name that holds escape sequences could move the cursor or change the colours of a terminal, one
that holds `$` is mathematics to matplotlib, and one of 250 characters hides the rest of a line.
"""

from __future__ import annotations

import html

NAME = 100  # characters of a name that are shown
LABEL, UNIT = 30, 18  # characters of a name, and of a unit, at the axis of a picture
MESSAGE = 2000  # bytes of a message that are shown


def plain(name: object, limit: int = NAME) -> str:
    """`name` in one line of visible characters, at most `limit` of them.

    Control characters, terminal escapes, marks that turn the direction of writing and bytes that
    are no UTF-8 are written as Python writes them (`\\x1b`); of a long name the middle is left out.
    """
    return shortened(visible(str(name)), limit)


def figure(name: object, limit: int = NAME) -> str:
    """`plain(name)` for matplotlib, which would read what is between two `$` as mathematics."""
    return plain(name, limit).replace("$", r"\$")


def page(text: object) -> str:
    """Text for HTML, its attributes included, and for TensorBoard, which shows Markdown: what it
    says stands there, and does nothing.
    """
    return html.escape(lines(str(text)), quote=True)


def lines(text: str) -> str:
    """A table or a report for the terminal: every line visible, none left out."""
    return "\n".join(visible(line) for line in text.split("\n"))


def message(text: str) -> str:
    """A message for the terminal: every line visible, at most MESSAGE bytes; how it ends, which
    often says what to do, is kept.
    """
    text, limit = lines(text), MESSAGE
    while len(text.encode()) > MESSAGE:
        limit -= 100
        text = shortened(text, limit)
    return text


def visible(text: str) -> str:
    """The text with everything that is no visible character, or a space, in Python's escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def shortened(text: str, limit: int) -> str:
    """At most `limit` characters: the first two thirds and the last third."""
    if len(text) <= limit:
        return text
    last = limit // 3
    return f"{text[: limit - last - 1]}…{text[-last:]}"
