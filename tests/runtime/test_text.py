"""Names from outside do no harm to a terminal, and no message fills it."""

from jaxvol.runtime import text


def test_what_a_terminal_would_obey_is_written_out():
    name = "a\x1b[2J\x07\r\n\u202eb\x9b\udcff ü 한 $x$"
    shown = text.plain(name)
    assert shown == r"a\x1b[2J\x07\r\n\u202eb\x9b\udcff ü 한 $x$"
    assert shown.encode() and text.plain(shown) == shown
    assert text.figure("$x$") == r"\$x\$"


def test_of_a_long_name_the_middle_is_left_out():
    name = "".join(chr(ord("a") + i % 26) for i in range(250))
    shown = text.plain(name)
    assert len(shown) == text.NAME and shown.count("…") == 1
    begins, ends = shown.split("…")
    assert name.startswith(begins) and name.endswith(ends) and len(begins) > len(ends) > 20


def test_a_message_has_at_most_two_kilobytes_and_keeps_its_end():
    for body in ("x" * 100_000, "한" * 5000, "line\n" * 3000):
        shown = text.message(f"begin {body} use another --workdir.")
        assert len(shown.encode()) <= 2000 and shown.startswith("begin")
        assert shown.endswith("use another --workdir.") and len(shown.encode()) > 1500
    assert text.message("two\nlines\x1b") == "two\nlines\\x1b"
    table = "row\n" * 2000
    assert text.lines(table) == table
