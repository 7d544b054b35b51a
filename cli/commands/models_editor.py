"""Change a models file without losing its comments: append a model, or cut its lines out."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import yaml

from cli.errors import CliError
from jobs.fleet.models_file import DEFAULT_QUEUES, NO_YAML, PACKAGED_FILE, EngineKind, ModelsFileError, Registry
from jobs.queues import Queue


@dataclass(frozen=True, slots=True)
class Editable:
    """A models file to be written to `path`, whose text is read from `origin`."""

    path: Path
    origin: Path


def editable(config_file: str, data_dir: Path) -> Editable:
    """Return the models file in force. A change to the packaged file is written to the data folder, as a copy."""
    path = Path(config_file).expanduser() if config_file else data_dir / PACKAGED_FILE.name
    return Editable(path, path if config_file or path.exists() else PACKAGED_FILE)


def own_queue(file: Editable, name: str, queue: str) -> str:
    """Return the queue to write for a new model of vLLM, of which a process holds one.

    That is `queue`. Where none is given it is empty, which means the usual one, or `gpu.NAME` if that is taken.

    Raises:
        CliError: another model of vLLM has `queue`, or the file is not valid.
    """
    try:
        models = Registry.read(file.origin).models.values()
    except ModelsFileError as error:
        raise CliError(str(error)) from error
    taken = {model.queue: model.name for model in models if model.engine is EngineKind.VLLM}
    if queue in taken:
        raise CliError(f"a process holds one vLLM model, and {queue} has {taken[queue]}; name another --queue")
    if queue or DEFAULT_QUEUES[EngineKind.VLLM] not in taken:
        return queue
    own = "gpu." + (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model")
    return next(free for free in chain([own], (f"{own}-{n}" for n in count(2))) if free not in {*taken, *Queue})


def append_model(file: Editable, name: str, fields: Mapping[str, Any]) -> None:
    """Append a model to `file`.

    Raises:
        CliError: the name is taken, or the file would not be valid. Nothing has been written.
    """
    text, head, models = _read(file.origin)
    if _span(models, name) is not None:
        raise CliError(f"{file.path} has a model '{name}' already; remove it first")
    block = yaml.safe_dump({name: dict(fields)}, sort_keys=False, allow_unicode=True, default_flow_style=None)
    indented = "".join(f"  {line}\n" for line in block.splitlines())
    if head and not models:
        lines = text.splitlines(keepends=True)
        lines[head.line] = _replace_value(lines[head.line], head.column, "")
        text = "".join(lines)
    _replace(file.path, f"{text.rstrip()}\n\n{indented}")


def cut_model(file: Editable, name: str) -> None:
    """Cut a model out of `file`.

    Raises:
        CliError: there is no model of that name. Nothing has been written.
    """
    text, head, models = _read(file.origin)
    span = _span(models, name)
    if head is None or span is None:
        raise CliError(f"{file.path} has no model '{name}'")
    lines = text.splitlines(keepends=True)
    first, end = span
    depth = len(lines[first]) - len(lines[first].lstrip())
    while end > first + 1 and _is_between_models(lines[end - 1], depth):
        end -= 1  # comments before the next model stay
    if len(models) == 1:
        lines[head.line] = _replace_value(lines[head.line], head.column, " {}")
    _replace(file.path, "".join(lines[:first] + lines[end:]))


def _is_between_models(line: str, depth: int) -> bool:
    """Return whether a line belongs to no model: it is empty, or a comment that is not indented below the names."""
    rest = line.lstrip()
    return not rest or (rest.startswith("#") and len(line) - len(rest) <= depth)


def _replace_value(line: str, column: int, value: str) -> str:
    """Return the line of the key `models`, which ends in `column`, with another value."""
    rest = line[column:].removeprefix(":").lstrip(" ").removeprefix("{}").rstrip()
    return f"{line[:column]}:{value}{f'  {rest.lstrip()}' if rest.strip() else ''}\n"


def _read(file: Path) -> tuple[str, yaml.Mark | None, list[tuple[yaml.Node, yaml.Node]]]:
    """Return the text of a file, the end of its key `models`, and its models as names and nodes.

    Raises:
        CliError: the file is not valid YAML.
    """
    try:
        text = file.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except NO_YAML as error:
        raise CliError(f"{file}: {error}") from error
    entries = root.value if isinstance(root, yaml.MappingNode) else []
    head, models = next(((key.end_mark, value) for key, value in entries if key.value == "models"), (None, None))
    return text, head, models.value if isinstance(models, yaml.MappingNode) else []


def _span(models: list[tuple[yaml.Node, yaml.Node]], name: str) -> tuple[int, int] | None:
    """Return the first line of a model, and the line behind its last."""
    starts = [key.start_mark.line for key, _ in models]
    for number, (key, value) in enumerate(models):
        if key.value == name:
            last = value.end_mark  # a block ends where the next one begins
            return starts[number], (*starts, last.line + (last.column > 0))[number + 1]
    return None


def _replace(file: Path, text: str) -> None:
    """Check `text`, then put it in place at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.new")
    new.write_text(text, encoding="utf-8")
    try:
        Registry.read(new)
    except ModelsFileError as error:
        new.unlink()
        raise CliError(str(error).replace(new.name, file.name)) from error
    os.replace(new, file)  # noqa: PTH105 (the same)
