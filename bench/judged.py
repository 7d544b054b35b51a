"""Make collections with judgements: documents, queries, and the document that each query looks for.

RFCs             Debian's doc-rfc-std (non-free); its JSON has the abstract. Query: the abstract's first sentence.
                 Document: the beginning of the RFC's text, without the paragraphs of its abstract.
Python's own     used without RFCs. Query: the first sentence of a function's docstring. Document: the other
                 docstrings of its module, and the rest of that docstring.
Small stores     Twelve of four docstrings each. Query: a question in other words (`bench/questions.py`).
Python's topics  The topics of Python's `help()`. Query: a question in other words.
"""

import gzip
import inspect
import json
import pydoc
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics as help_topics
from typing import Any

from bench import questions
from bench.papers import Paper
from examples import corpus

PACKAGE = "doc-rfc-std"
_INSTALLED = Path("/usr/share/doc/RFC")
_TAKEN = 6_000  # characters of an RFC, about its introduction
_SHORTEST_QUERY = 40  # characters
_SHORTEST_PAPER = 200  # bytes
_ALL = 10_000  # docstrings
_SAME = 0.5  # share of a paragraph's word triples that the abstract has
_ENDS = re.compile(r"(?<=\w[\w)\"'][.?!])\s+(?=[A-Z\"(\[])")  # but not after an initial
_LINES_OF_PAGES = re.compile(r"^.*\[Page \d+\]\s*$|^RFC \d+ .*\d{4}$|\f|^.*\. ?\. ?\. ?.*$", re.MULTILINE)
_PER_MODULE = 2  # queries


class NotToBeHad(Exception):
    """The package is not installed, and apt-get does not have it."""


@dataclass(slots=True)
class Collection:
    """Documents with queries. `queries` are texts, `relevant` names the one document of each query."""

    name: str
    papers: list[Paper] = field(default_factory=list)
    queries: dict[str, str] = field(default_factory=dict)
    relevant: dict[str, str] = field(default_factory=dict)

    def ask(self, asked: Sequence[tuple[str, Paper]]) -> None:
        """Add the queries that belong to one document only."""
        times = Counter(query for query, _ in asked)
        for n, (query, paper) in enumerate(asked):
            if times[query] == 1:
                self.queries[f"q{n}"], self.relevant[f"q{n}"] = query, paper.name


def rfcs(folder: Path, given: Path | None = None) -> Collection:
    """Return the collection of RFCs. `given` is a folder of the package's files, or the package."""
    root = given if given and given.is_dir() else _unpacked(folder, given)
    found, asked = Collection("RFCs"), list[tuple[str, Paper]]()
    for metadata, text in _read(root):
        query = first_sentence(metadata["abstract"])
        paper = Paper(f"{metadata['doc_id'].lower()}.txt", without(text, metadata["abstract"])[:_TAKEN].encode())
        found.papers.append(paper)
        if len(query) >= _SHORTEST_QUERY:
            asked.append((query, paper))
    found.ask(asked)
    if not found.queries:
        raise NotToBeHad(f"no RFCs with an abstract in {root}")
    return found


def modules() -> Collection:
    """Return the collection of Python's documentation, from the sources of the standard library."""
    parts: dict[str, list[str]] = defaultdict(list)
    queries: dict[str, list[str]] = defaultdict(list)
    for one in corpus.docstrings(_ALL):
        module, query = one.name.split(".")[0], first_sentence(one.text)
        parts[module].append(" ".join(one.text.split()))
        if one.name != module and len(query) >= _SHORTEST_QUERY and len(queries[module]) < _PER_MODULE:
            queries[module].append(query)
    papers = {module: Paper(f"{module}.txt", _less(texts, queries[module])) for module, texts in parts.items()}
    large = {module: paper for module, paper in papers.items() if len(paper.data) >= _SHORTEST_PAPER}
    found = Collection("Python's modules", list(large.values()))
    found.ask([(query, paper) for module, paper in large.items() for query in queries[module]])
    return found


def small_stores() -> list[Collection]:
    """Return a collection for each small store, with unique query names."""
    return [_asked(name, {one: _docstring(one) for one in asked}, asked) for name, asked in questions.SMALL.items()]


def topics() -> Collection:
    """Return the topics of Python's `help()` with questions about some of them."""
    return _asked("Python's topics", help_topics, questions.TOPICS)


def joined(collections: Sequence[Collection]) -> Collection:
    """Return the queries and judgements of several stores as one collection."""
    name = collections[0].name if len(collections) == 1 else f"{len(collections)} small stores"
    whole = Collection(name, [paper for one in collections for paper in one.papers])
    for one in collections:
        whole.queries |= one.queries
        whole.relevant |= one.relevant
    return whole


def _asked(name: str, texts: Mapping[str, str], asked: Mapping[str, str]) -> Collection:
    papers = {one: Paper(f"{one}.txt", text.encode()) for one, text in texts.items()}
    found = Collection(name, list(papers.values()))
    found.queries = {f"{name}/{one}": question for one, question in asked.items()}
    found.relevant = {f"{name}/{one}": papers[one].name for one in asked}
    return found


def _docstring(name: str) -> str:
    text = inspect.getdoc(pydoc.locate(name))
    assert text, name
    return text


def _less(texts: Sequence[str], queries: Sequence[str]) -> bytes:
    """Return the texts as one page without the queries, each of which may occur in several docstrings."""
    page = "\n\n".join(texts)
    for query in queries:
        page = page.replace(query, "")
    return page.encode()


def first_sentence(text: str) -> str:
    """Return the first sentence on one line, without notes in brackets."""
    plain = re.sub(r"\s*\[[A-Z][A-Z -]+\]\s*", " ", " ".join(text.split()))
    return _ENDS.split(plain.strip(), maxsplit=1)[0]


def without(text: str, abstract: str) -> str:
    """Return the text without page lines and without every paragraph that repeats the abstract."""
    said = _triples(abstract)
    paragraphs = re.split(r"\n\s*\n", _LINES_OF_PAGES.sub("", text))
    return "\n\n".join(one.strip("\n") for one in paragraphs if one.strip() and not _repeats(one, said))


def _repeats(paragraph: str, said: set[tuple[str, ...]]) -> bool:
    mine = _triples(paragraph)
    return bool(mine) and len(mine & said) / len(mine) > _SAME


def _triples(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return set(zip(words, words[1:], words[2:], strict=False))


def _read(root: Path) -> Iterator[tuple[dict[str, Any], str]]:
    seen = set[str]()
    for path in sorted(root.rglob("rfc*.json")):
        metadata, text = json.loads(path.read_text()), path.with_suffix(".txt.gz")
        if metadata["doc_id"] not in seen and text.is_file() and metadata["abstract"].strip():
            seen.add(metadata["doc_id"])
            yield metadata, gzip.decompress(text.read_bytes()).decode("utf-8", "replace")


def _unpacked(folder: Path, package: Path | None) -> Path:
    if package is None and any(_INSTALLED.rglob("rfc*.json")):
        return _INSTALLED
    try:
        target = folder / "rfc"
        subprocess.run(["dpkg-deb", "-x", package or _downloaded(folder), target], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotToBeHad(f"{PACKAGE} is not installed, and can't be downloaded ({error})") from error
    return target


def _downloaded(folder: Path) -> Path:
    subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, check=True, capture_output=True)
    return next(folder.glob(f"{PACKAGE}_*.deb"))
