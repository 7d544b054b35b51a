"""Read a Procfile: one process a line, `name: NAME=value … program argument …`, run without a shell.

`release` runs to its end before the others start; the others run side by side. A comment `# optional name: program …`
is a line that runs where it is named, and only a comment for other readers of the file. A model of the models file with
a queue of its own needs a line that no Procfile can know: `lines_for` makes it.
"""

import re
import shlex
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cli.errors import CliError
from jobs.queues import POOL_QUEUES, command_for

if TYPE_CHECKING:
    from jobs.fleet.models_file import ModelConfig

RELEASE = "release"
#: The Procfile of this package.
PACKAGED = Path(__file__).with_name("Procfile")
#: The folder of the packages: a checkout, or `site-packages` of their environment.
CODE = Path(__file__).resolve().parents[2]
_OPTIONAL = re.compile(r"^#\s*optional\s+(?=[A-Za-z0-9_-]+:\s)")
_LINE = re.compile(r"^([A-Za-z0-9_-]+):\s+(\S.*)$")
_ASSIGNMENT = re.compile(r"^([A-Za-z_][A-Za-z0-9_]*)=(.*)$", re.DOTALL)
_SHELL = frozenset({"|", "||", "&", "&&", ";", "<", ">", ">>", "2>&1"})


@dataclass(frozen=True, slots=True)
class Line:
    """A process: its name, its program, and the variables added to its environment."""

    name: str
    program: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def load(path: Path, optional: Collection[str] = ()) -> list[Line]:
    """Return the lines in their order, then those `optional` ones that are named.

    Raises CliError with the number of an invalid line, or for a name that no optional line has.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise CliError(f"cannot read {path}: {error.strerror}") from error
    numbered = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    lines = [_parse(path, number, line) for number, line in numbered if line and not line.startswith("#")]
    others = [_parse(path, number, _OPTIONAL.sub("", line)) for number, line in numbered if _OPTIONAL.match(line)]
    more = {line.name: line for line in others}
    if unknown := [name for name in optional if name not in more]:
        raise CliError(f"{path} has no optional line '{unknown[0]}'; it has: {', '.join(more) or 'none'}")
    lines += [more[name] for name in dict.fromkeys(optional)]
    names = [line.name for line in lines]
    for name in names:
        if names.count(name) > 1:
            raise CliError(f"{path} names '{name}' more than once")
    return lines


def queue_of(line: Line) -> str:
    """Return the queue that shows whether a line works; empty for a line that runs no worker."""
    words = line.program
    if "workers" not in words:
        return ""
    pool, *queues = words[words.index("workers") + 1 :] or ("",)
    return queues[0] if queues else POOL_QUEUES.get(pool, "")


def lines_for(models: "Iterable[ModelConfig]", lines: Sequence[Line]) -> list[Line]:
    """Return a line for each queue of `models` that none of `lines` serves."""
    served = set(map(queue_of, lines))
    embeds: dict[str, bool] = {}
    for model in models:
        if model.queue not in served:
            embeds[model.queue] = model.engine.embeds and embeds.get(model.queue, True)
    return [Line(queue, _words(command_for(queue, embeds=only))) for queue, only in embeds.items()]


def _words(command: str) -> tuple[str, ...]:
    name, *words = shlex.split(command)
    return (_interpreter(name), *words)


def _parse(path: Path, number: int, text: str) -> Line:
    match = _LINE.match(text)
    if match is None:
        raise CliError(f"{path}, line {number}: expected 'name: command', found '{text}'")
    name, command = match.groups()
    try:
        words = shlex.split(command, comments=True)
    except ValueError as error:
        raise CliError(f"{path}, line {number}: {error}") from error
    environment = {}
    while words and (assignment := _ASSIGNMENT.match(words[0])):
        environment[assignment.group(1)] = assignment.group(2)
        words = words[1:]
    if not words:
        raise CliError(f"{path}, line {number}: '{name}' has no program")
    if operators := _SHELL.intersection(words):
        raise CliError(f"{path}, line {number}: no shell runs this line, so '{min(operators)}' means nothing here")
    return Line(name, (_interpreter(words[0]), *words[1:]), environment)


def _interpreter(word: str) -> str:
    """Return the path of this command's interpreter for `python`, whatever PATH says."""
    return sys.executable if word in {"python", "python3"} else word
