"""The files of a Promptfoo config: read inside of its folder alone, in bounded sizes, and as Promptfoo reads them.

Promptfoo reads YAML 1.2: `yes` and `on` are texts there, and so is a date. A whole number is one however it is written.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import yaml

#: Bytes of a file, of a file of YAML (which is slow to read), and of all files of a config.
MAX_BYTES: Final = 64 << 20
MAX_YAML_BYTES: Final = 4 << 20
MAX_ALL_BYTES: Final = 256 << 20
#: Files that a pattern stands for.
MAX_MATCHES: Final = 1000
#: Parts of a value once its references are followed, and how deep they lie.
MAX_PARTS: Final = 2_000_000
MAX_DEPTH: Final = 80
#: Programs, which only Promptfoo can run.
SCRIPTS: Final = frozenset({".js", ".cjs", ".mjs", ".ts", ".cts", ".mts", ".py", ".rb", ".go", ".sh"})

Object = dict[str, Any]


class NoCounterpart(Exception):
    """A part of a config does not come over: the message says why."""


class _YamlLoader(yaml.SafeLoader):
    """Load YAML 1.2 without tags that make objects."""


_YamlLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+0123456789.")),
    ("merge", r"<<", ["<"]),
):
    _YamlLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)


def _integer(loader: _YamlLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if re.match(r"0[xo]", text) else int(text)


def _float(loader: _YamlLoader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node))


_YamlLoader.add_constructor("tag:yaml.org,2002:int", _integer)
_YamlLoader.add_constructor("tag:yaml.org,2002:float", _float)


def load_yaml(text: str) -> Any:
    """Return the value of a text of YAML 1.2. Raises: NoCounterpart."""
    if len(text) > MAX_YAML_BYTES:
        raise NoCounterpart(f"its YAML has more than {MAX_YAML_BYTES} characters")
    try:
        return yaml.load(text, _YamlLoader)  # noqa: S506 (it is a safe loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise NoCounterpart(f"it is not YAML: {' '.join(str(error).split())[:200]}") from error


def load_json(text: str) -> Any:
    """Return the value of a text of JSON. Raises: NoCounterpart."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NoCounterpart(f"it is not JSON: {error}"[:200]) from error


def _load_lines(text: str) -> list[Any]:
    return [load_json(line) for line in text.splitlines() if line.strip()]


def _load_rows(text: str) -> list[Object]:
    try:
        return list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True, restval=""))
    except csv.Error as error:
        raise NoCounterpart(f"it is not CSV: {error}") from error


_LOADERS: Final = {
    ".yaml": load_yaml, ".yml": load_yaml, ".json": load_json, ".jsonl": _load_lines, ".csv": _load_rows,
}  # fmt: skip


class ConfigFolder:
    """The folder of a config. `files` are those that were read."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.files: set[Path] = set()
        self._bytes = self._parts = 0

    def text(self, name: str) -> str:
        """Return the text of a file of the folder. Raises: NoCounterpart."""
        path = self._inside(name)
        try:
            size = path.stat().st_size
            self._bytes += size
            if size > MAX_BYTES or self._bytes > MAX_ALL_BYTES:
                raise NoCounterpart(f"the file {name!r} is too large")
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
            raise NoCounterpart(f"the file {name!r} cannot be read: {reason}") from error
        self.files.add(path)
        return text

    def value(self, name: str) -> Any:
        """Return what a file holds by its suffix: a value, rows, or text. Raises: NoCounterpart."""
        loaded = self.load(name)
        return self.follow(loaded, loaded)

    def load(self, name: str) -> Any:
        """Return the same with references that are not followed. Raises: NoCounterpart."""
        suffix = Path(name).suffix.lower()
        if suffix in SCRIPTS:
            raise NoCounterpart(f"{name!r} is a program, which only Promptfoo runs")
        return _LOADERS.get(suffix, str)(self.text(name))

    def matches(self, pattern: str) -> list[str]:
        """Return the names of the files that a pattern stands for. Raises: NoCounterpart."""
        if not any(sign in pattern for sign in "*?["):
            path = self._inside(pattern)
            return self.matches(f"{pattern}/*") if path.is_dir() else [pattern]
        self._inside(pattern)
        names = []
        for path in sorted(self.root.glob(pattern)):
            if path.is_file():
                names.append(str(path.relative_to(self.root)))
            if len(names) > MAX_MATCHES:
                raise NoCounterpart(f"{pattern!r} stands for more than {MAX_MATCHES} files")
        if not names:
            raise NoCounterpart(f"no file is there for {pattern!r}")
        return names

    def follow(self, value: Any, root: Any, depth: int = 0) -> Any:
        """Return a copy of a value in which what a `$ref` refers to has taken its place. Raises: NoCounterpart."""
        self._parts += 1
        if self._parts > MAX_PARTS or depth > MAX_DEPTH:
            raise NoCounterpart("it has too many parts, or refers to itself")
        if isinstance(value, list):
            return [self.follow(entry, root, depth + 1) for entry in value]
        if isinstance(value, Mapping):
            if not isinstance(value.get("$ref"), str):
                return {str(name): self.follow(entry, root, depth + 1) for name, entry in value.items()}
            target = self._target(value["$ref"], root, depth)
            others = {name: self.follow(entry, root, depth + 1) for name, entry in value.items() if name != "$ref"}
            return {**target, **others} if others and isinstance(target, dict) else target
        if isinstance(value, float):
            if not math.isfinite(value):
                raise NoCounterpart("a number is not finite")
            return int(value) if value.is_integer() and abs(value) < 1 << 53 else value
        return value

    def _target(self, reference: str, root: Any, depth: int) -> Any:
        name, _, pointer = reference.partition("#")
        target = root = self.value(name.removeprefix("file://")) if name else root
        try:
            for step in filter(None, pointer.split("/")):
                key = unquote(step).replace("~1", "/").replace("~0", "~")
                target = target[int(key)] if isinstance(target, list) else target[key]
        except (LookupError, TypeError, ValueError) as error:
            raise NoCounterpart(f"its $ref {reference[:200]!r} leads nowhere") from error
        return self.follow(target, root, depth + 1)

    def _inside(self, name: str) -> Path:
        """Return the path of a name, links followed. Raises: NoCounterpart, where it leaves the folder."""
        if "\0" in name or ".." in Path(name).parts:
            raise NoCounterpart(f"{name[:200]!r} leaves the folder of the config")
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root):
            raise NoCounterpart(f"{name[:200]!r} leaves the folder of the config")
        return path


def file_name(value: Any) -> str | None:
    """Return the name of the file that a `file://` value refers to, or None."""
    return value.removeprefix("file://") if isinstance(value, str) and value.startswith("file://") else None


def entries_of(value: Any) -> Iterator[Any]:
    """Yield the entries of a list, or the value itself; nothing for null."""
    yield from value if isinstance(value, list) else () if value is None else (value,)
