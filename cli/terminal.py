"""Print to the operator's terminal; every command prints through this module.

Clients and servers choose model names, file names, custom_ids, error messages and webhook payloads. An escape sequence
in one of them must not reach a terminal, and square brackets must not be read as rich's markup. JSON, JSON lines and
CSV keep their bytes where standard output is a pipe or a file.
"""

import json
import re
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, BinaryIO, TextIO

if TYPE_CHECKING:
    from rich.text import Text

_WIDE = 200  # columns without a terminal
#: C0 and C1 controls, line separators, controls of the writing direction, surrogates without a partner.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Return `text` with each control character written as its escape, such as `\\x1b`."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def escaped(text: str) -> str:
    """Return `visible(text)` for use inside rich's markup."""
    from rich.markup import escape

    return escape(visible(text))


def cell(value: object) -> "Text":
    """Return `value` as plain text of a rich table."""
    from rich.text import Text

    return Text(visible(str(value)))


def say(text: str, *, err: bool = False) -> None:
    """Print `text` on one line of standard output, or of standard error."""
    print(visible(text), file=sys.stderr if err else sys.stdout, flush=True)


def write_line(text: str) -> None:
    """Write as much of `text` as fits into one line of the terminal, without ending the line."""
    print(visible(text)[: shutil.get_terminal_size().columns - 1], end="", flush=True)


def wipe_line() -> None:
    """Clear what `write_line` wrote, where standard output is a terminal."""
    if sys.stdout.isatty():
        print("\r\x1b[2K", end="")


def show_json(value: object) -> None:
    """Print `value` as JSON Lines in ASCII: each entry of a list on a line of its own, anything else on one line."""
    for entry in value if isinstance(value, list) else [value]:
        print(json.dumps(entry), flush=True)


def moment(seconds: float | None) -> str:
    """Return a time in unix seconds as local date and time; `-` for none."""
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def show_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print `rows` under `head`. The first column is an id or a name to be copied, and is never wrapped."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for number, name in enumerate(head):
        table.add_column(name, no_wrap=number == 0, overflow="fold" if number else "ignore")
    for row in rows:
        table.add_row(*map(cell, row))
    Console(width=None if sys.stdout.isatty() else _WIDE).print(table)


class Screen:
    """Standard output where it is a terminal: control characters are made visible in each line."""

    def write(self, text: str) -> int:
        return sys.stdout.write("\n".join(map(visible, text.replace("\r\n", "\n").split("\n"))))

    def writelines(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            self.write(line.decode(errors="replace"))


def text_output() -> "TextIO | Screen":
    """Return what writes text to standard output: unchanged where that is not a terminal."""
    return Screen() if sys.stdout.isatty() else sys.stdout


def byte_output() -> "BinaryIO | Screen":
    """Return what writes lines of bytes to standard output: unchanged where that is not a terminal."""
    return Screen() if sys.stdout.isatty() else sys.stdout.buffer
