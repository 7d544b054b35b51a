"""The Procfile: one process a line, `name: NAME=value … program argument …`, run without a shell.

`release` is run to completion before the others start; the others run side by side.
"""

import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cli.errors import Trouble

RELEASE = "release"
#: The processes of `nightmill up`, as they come with this package.
PACKAGED = Path(__file__).with_name("Procfile")
#: The folder that the packages lie in: a checkout, or `site-packages` of the environment that they are installed in.
CODE = Path(__file__).resolve().parents[2]
_LINE = re.compile(r"^([A-Za-z0-9_-]+):\s+(\S.*)$")
_ASSIGNMENT = re.compile(r"^([A-Za-z_][A-Za-z0-9_]*)=(.*)$", re.DOTALL)
_SHELL = frozenset({"|", "||", "&", "&&", ";", "<", ">", ">>", "2>&1"})


@dataclass(frozen=True, slots=True)
class Line:
    """One process type: what it is called, what runs, and what is added to its environment."""

    name: str
    program: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def load(path: Path) -> list[Line]:
    """The lines in the file's order. Raises Trouble with the number of a line that is no process."""
    try:
        text = path.read_text()
    except OSError as error:
        raise Trouble(f"cannot read {path}: {error.strerror}") from error
    lines = [
        _parse(path, number, line.strip())
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    names = [line.name for line in lines]
    for name in names:
        if names.count(name) > 1:
            raise Trouble(f"{path} names '{name}' more than once")
    return lines


def _parse(path: Path, number: int, text: str) -> Line:
    match = _LINE.match(text)
    if match is None:
        raise Trouble(f"{path}, line {number}: expected 'name: command', found '{text}'")
    name, command = match.groups()
    try:
        words = shlex.split(command, comments=True)
    except ValueError as error:
        raise Trouble(f"{path}, line {number}: {error}") from error
    environment = {}
    while words and (assignment := _ASSIGNMENT.match(words[0])):
        environment[assignment.group(1)] = assignment.group(2)
        words = words[1:]
    if not words:
        raise Trouble(f"{path}, line {number}: '{name}' has no program")
    if operators := _SHELL.intersection(words):
        raise Trouble(f"{path}, line {number}: no shell runs this line, so '{min(operators)}' means nothing here")
    return Line(name, (_interpreter(words[0]), *words[1:]), environment)


def _interpreter(word: str) -> str:
    """`python` is the interpreter that runs this command, whatever stands first in PATH."""
    return sys.executable if word in {"python", "python3"} else word
