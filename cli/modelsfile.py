"""Changes to a models.yaml: a model appended or cut out, everything else (comments, order) as it was.

The result is checked as a whole before it takes the old file's place; a wrong one changes nothing.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cli.trouble import Trouble
from jobs.registry import PACKAGED_FILE, ModelsFileError, Registry


def editable(config_file: str, data_dir: Path) -> Path:
    """The file in force, copied into the data folder first when it is the packaged one."""
    if config_file:
        return Path(config_file).expanduser()
    own = data_dir / PACKAGED_FILE.name
    if not own.exists():
        own.parent.mkdir(parents=True, exist_ok=True)
        _replace(own, PACKAGED_FILE.read_text(encoding="utf-8"))
    return own


def add(file: Path, name: str, fields: Mapping[str, Any]) -> None:
    """Append a model. Raises Trouble when the name is taken or the file would not be right."""
    text = file.read_text(encoding="utf-8")
    if _place(text, name) is not None:
        raise Trouble(f"{file} has a model '{name}' already; remove it first")
    block = yaml.safe_dump({name: dict(fields)}, sort_keys=False, allow_unicode=True, default_flow_style=None)
    indented = "".join(f"  {line}\n" for line in block.splitlines())
    if text.rstrip().endswith("models: {}"):
        text = text.rstrip().removesuffix("{}").rstrip() + "\n"
    _replace(file, f"{text.rstrip()}\n\n{indented}")


def remove(file: Path, name: str) -> None:
    """Cut a model out. Raises Trouble when there is none of that name."""
    text = file.read_text(encoding="utf-8")
    place = _place(text, name)
    if place is None:
        raise Trouble(f"{file} has no model '{name}'")
    lines = text.splitlines(keepends=True)
    first, end = place
    while end > first + 1 and not lines[end - 1].strip():
        end -= 1  # blank lines before the next one stay
    rest = "".join(lines[:first] + lines[end:])
    if not (yaml.safe_load(rest) or {}).get("models"):
        rest = rest.rstrip().removesuffix(":") + ": {}\n"
    _replace(file, rest)


def _place(text: str, name: str) -> tuple[int, int] | None:
    """The lines of a model: the first, and the one after the last."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    models = next((value for key, value in root.value if key.value == "models"), None) if root else None
    found = models.value if isinstance(models, yaml.MappingNode) else []
    starts = [key.start_mark.line for key, _ in found]
    for number, (key, value) in enumerate(found):
        if key.value == name:
            last = value.end_mark  # of a block: where the next one begins
            return starts[number], (*starts, last.line + (last.column > 0))[number + 1]
    return None


def _replace(file: Path, text: str) -> None:
    """Check, then put in place at once."""
    new = file.with_name(f".{file.name}.new")
    new.write_text(text, encoding="utf-8")
    try:
        Registry.read(new)
    except ModelsFileError as error:
        new.unlink()
        raise Trouble(str(error).replace(new.name, file.name)) from error
    os.replace(new, file)  # noqa: PTH105 (the same)
