"""Text from files on a terminal: nothing in it moves, colours, hides or turns anything."""

import pytest
from rich.console import Console

from ellzero.cli.tables import say, show_rows, show_warnings
from ellzero.progress import shown_progress
from ellzero.terminal import plain


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("as it is: é, 数, 🙂, two  spaces", "as it is: é, 数, 🙂, two  spaces"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\r\n   b\tc\u2028d\xa0e", "a b c d e"),
        ("abc\u202egnp.exe\u2066", r"abc\u202egnp.exe\u2066"),
        ("zero\u200bwidth\x00", r"zero\u200bwidth\x00"),
        ("\ud800", r"\ud800"),
        (ValueError("an error\n in lines"), "an error in lines"),
    ],
)
def test_plain(text, expected):
    assert plain(text) == expected
    assert plain(text).isprintable()


def test_tables_and_lines_show_text_as_it_is(capsys):
    label = "[/] [bold red]x[/bold red] \x1b[31m"
    show_rows(label, [(label, "[/]")], ("[/]", label))
    say(label)
    show_warnings([label])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.count("[/] [bold red]x[/bold red] \\x1b[31m") == 5
    assert out.count("[/]") == 7


def test_a_bar_shows_text_as_it_is():
    with shown_progress(shown=False) as bar:
        bar.add_task("[/]", total=1, note="[/b]")
        console = Console(width=80)
        with console.capture() as capture:
            console.print(bar.get_renderable())
    assert "[/]" in capture.get()
    assert "[/b]" in capture.get()
