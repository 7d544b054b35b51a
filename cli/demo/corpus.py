"""Read the demo's texts: docstrings of Python's standard library, parsed from its sources and never imported.

Modules take turns, so that a small batch has docstrings of many modules.
"""

import ast
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

_SHORTEST = 60  # characters; shorter docstrings need no summary
_LONGEST = 600
_PER_MODULE = 8
_PASSED_OVER = frozenset({"antigravity", "idlelib", "lib2to3", "test", "this", "turtledemo", "pydoc_data"})

#: Questions for which the demo shows the nearest docstrings.
QUESTIONS = ("read a CSV file", "wait for a thread to end", "the average of some numbers")
#: Topics; the demo shows the nearest one of each docstring.
TOPICS = {
    "files": "files, directories and paths",
    "text": "text, strings and regular expressions",
    "numbers": "numbers, mathematics and statistics",
    "dates": "dates, times and calendars",
    "network": "network connections, servers and e-mail",
    "concurrency": "threads, processes and events",
    "data": "data formats, compression and databases",
    "language": "classes, types and functions",
    "security": "cryptography, passwords and secrets",
    "testing": "debugging, testing and profiling",
    "media": "images, colours and sound",
    "interface": "windows, terminals and command lines",
}
_TASK = "You write documentation. Answer with one short sentence."


@dataclass(frozen=True, slots=True)
class Docstring:
    """A docstring, with the full name of the documented object."""

    name: str
    text: str


def docstrings(count: int) -> list[Docstring]:
    """Return the first `count` docstrings, the same ones on every run of one Python version."""
    turns = zip_longest(*(list(islice(_of_module(name, path), _PER_MODULE)) for name, path in _modules()))
    return list(islice((docstring for turn in turns for docstring in turn if docstring is not None), count))


def chats(docstrings: Sequence[Docstring], model: str, max_tokens: int) -> list[dict[str, Any]]:
    """Return the lines of a batch that asks for a summary of each docstring."""
    return [
        _line(f"chat-{n}", "/v1/chat/completions", _chat(docstring, model, max_tokens))
        for n, docstring in enumerate(docstrings)
    ]


def embeddings(docstrings: Sequence[Docstring], model: str) -> list[dict[str, Any]]:
    """Return the lines of a batch that embeds each docstring, the topics and the questions."""
    texts = [(f"doc-{n}", f"{docstring.name}: {docstring.text}") for n, docstring in enumerate(docstrings)]
    texts += [(f"topic-{name}", text) for name, text in TOPICS.items()]
    texts += [(f"question-{n}", text) for n, text in enumerate(QUESTIONS)]
    return [_line(custom_id, "/v1/embeddings", {"model": model, "input": text}) for custom_id, text in texts]


def _chat(docstring: Docstring, model: str, max_tokens: int) -> dict[str, Any]:
    messages = [
        {"role": "system", "content": _TASK},
        {"role": "user", "content": f"Summarise in one sentence what `{docstring.name}` is for:\n\n{docstring.text}"},
    ]
    return {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}


def _line(custom_id: str, url: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


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
