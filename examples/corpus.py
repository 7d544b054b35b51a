"""The texts of the examples: docstrings of Python's standard library, parsed from its sources and never imported.

Modules take turns, so that a few docstrings are of many modules. Put your own texts in their place.
"""

import ast
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path

_SHORTEST = 60  # characters; shorter docstrings need no summary
_LONGEST = 600
_SHORT = 120  # characters of a docstring to train on, so that a small machine trains in minutes
_PER_MODULE = 8
_ENTRY = re.compile(r"@entry (\S+)\n@module (\S+)\n@about (\S[^\n]*)")
_SENTENCE = re.compile(r"(?<=[.!?])\s")
_PASSED_OVER = frozenset({"antigravity", "idlelib", "lib2to3", "test", "this", "turtledemo", "pydoc_data"})


@dataclass(frozen=True, slots=True)
class Docstring:
    """A docstring, with the full name of the documented object."""

    name: str
    text: str


def docstrings(count: int) -> list[Docstring]:
    """Return the first `count` docstrings, the same ones on every run of one Python version."""
    turns = zip_longest(*(list(islice(_of_module(name, path), _PER_MODULE)) for name, path in _modules()))
    return list(islice((docstring for turn in turns for docstring in turn if docstring is not None), count))


def question(docstring: Docstring) -> list[dict[str, str]]:
    """Return the messages that ask about an object. Nothing in them tells how to answer."""
    system = {"role": "system", "content": "You document Python."}
    return [system, {"role": "user", "content": f"What is {docstring.name}?\n\n{docstring.text[:_SHORT]}"}]


def entry(docstring: Docstring) -> str:
    """Return the answer that a model is trained to give: an entry of three lines."""
    first = _SENTENCE.split(" ".join(docstring.text[:_SHORT].split()), maxsplit=1)[0]
    return f"@entry {docstring.name}\n@module {docstring.name.partition('.')[0]}\n@about {first}"


def entry_name(text: str) -> str | None:
    """Return the name in a text that is an entry and nothing else; None for any other text."""
    match = _ENTRY.fullmatch(text.strip())
    return match and match[1]


def _modules() -> Iterator[tuple[str, Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    for name in sorted(sys.stdlib_module_names - _PASSED_OVER):
        path = root / f"{name}.py" if (root / f"{name}.py").exists() else root / name / "__init__.py"
        if not name.startswith("_") and path.exists():
            yield name, path


def _of_module(name: str, path: Path) -> Iterator[Docstring]:
    with warnings.catch_warnings():  # old modules have invalid escapes in their strings
        warnings.simplefilter("ignore")
        tree = ast.parse(path.read_bytes())
    parts = _documented(name, tree.body)
    yield from islice(parts, 1)
    yield from _shown(name, tree)
    yield from parts


def _documented(prefix: str, body: Iterable[ast.stmt]) -> Iterator[Docstring]:
    """Yield the documented public functions, classes and methods in the order of the source."""
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        name = f"{prefix}.{node.name}"
        yield from _shown(name, node)
        if isinstance(node, ast.ClassDef):
            yield from _documented(name, node.body)


def _shown(name: str, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[Docstring]:
    text = ast.get_docstring(node) or ""
    if len(text) >= _SHORTEST:
        yield Docstring(name, text[:_LONGEST])
