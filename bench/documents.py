"""Find documents on this machine to bring into vector stores.

installed packages        licences, READMEs and other texts, Markdown, reStructuredText, HTML, unchanged
topics of `help()`        text; the longer topics as PDF
modules                   HTML, `pydoc`'s page of each
"""

import hashlib
import importlib
import pydoc
import random
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from pydoc_data import topics

from bench.papers import Paper, pdf
from examples import corpus

_SUFFIXES = frozenset({".md", ".rst", ".txt", ".html"})
_NAMES = ("LICENSE", "LICENCE", "README", "COPYING", "NOTICE", "AUTHORS")
_SHORTEST, _LONGEST = 300, 20_000  # bytes, so that a few hundred documents take minutes
_SILENT = re.compile(
    r"<(head|nav|noscript|script|style|dialog)\b.*?</\1>|<!--.*?-->|<[^>]*>", re.DOTALL | re.IGNORECASE
)
_IN_PAGES = 5_000  # characters; longer topics become PDF
_MODULES = (
    "abc", "argparse", "ast", "base64", "bisect", "bz2", "calendar", "cmd", "code", "codecs", "collections", "copy",
    "csv", "datetime", "difflib", "dis", "enum", "filecmp", "fileinput", "fnmatch", "fractions", "ftplib", "functools",
    "getpass", "gettext", "glob", "graphlib", "gzip", "heapq", "hmac", "html", "inspect", "io", "ipaddress", "json",
    "keyword", "linecache", "locale", "lzma", "mimetypes", "numbers", "operator", "pathlib", "pickle", "pprint",
    "queue", "random", "reprlib", "sched", "secrets", "selectors", "shelve", "shlex", "shutil", "smtplib", "socket",
    "stat", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "timeit", "tokenize",
    "tomllib", "traceback", "types", "uuid", "weakref", "zipfile",
)  # fmt: skip


def gathered(count: int) -> list[Paper]:
    """Return `count` documents of mixed kinds, or as many as there are; the same ones on every run."""
    found = list(_once((*_installed(), *_reference(), *_pages())))
    random.Random(1).shuffle(found)
    return found[:count]


def small(count: int) -> list[Paper]:
    """Return notes of a few sentences, each with words of its own."""
    notes = [f"{one.name}: {one.text[:240]}" for one in corpus.docstrings(500)]
    return [Paper(f"note-{n}.txt", f"Note {n}. {notes[n % len(notes)]}".encode()) for n in range(count)]


def written(papers: Sequence[Paper], folder: Path) -> Path:
    """Write the documents as files into a folder."""
    folder.mkdir(parents=True)
    for paper in papers:
        (folder / paper.name).write_bytes(paper.data)
    return folder


def _once(papers: Iterable[Paper]) -> Iterator[Paper]:
    """Yield each document once; hundreds of packages contain the same licence."""
    seen = set[bytes]()
    for paper in papers:
        digest = hashlib.sha256(paper.data).digest()
        if digest not in seen and _SHORTEST <= len(paper.data) <= _LONGEST:
            seen.add(digest)
            yield paper


def _installed() -> Iterator[Paper]:
    root = Path(sysconfig.get_path("purelib"))
    for path in sorted(root.rglob("*")):
        is_text = path.suffix in _SUFFIXES or (not path.suffix and path.name.startswith(_NAMES))
        if is_text and path.is_file() and (path.suffix != ".html" or _says_something(path)):
            name = "-".join(path.relative_to(root).parts)
            yield Paper(name if path.suffix else f"{name}.txt", path.read_bytes())


def _says_something(page: Path) -> bool:
    """Return whether an HTML page has text. Many pages are empty until scripts fill them."""
    return bool(_SILENT.sub("", page.read_text(errors="replace")).strip())


def _reference() -> Iterator[Paper]:
    for name, text in sorted(topics.topics.items()):
        if len(text) < _IN_PAGES:
            yield Paper(f"topic-{name}.txt", text.encode())
        else:
            yield Paper(f"topic-{name}.pdf", pdf(text[: _LONGEST // 2]))


def _pages() -> Iterator[Paper]:
    for name in _MODULES:
        page = pydoc.HTMLDoc().page(name, pydoc.HTMLDoc().docmodule(importlib.import_module(name)))
        yield Paper(f"module-{name}.html", page.encode())
