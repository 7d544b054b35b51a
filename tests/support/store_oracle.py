"""Vector stores as their clients know them, and what must be true of them: judged through HTTP alone.

    Paper        a document with numbered words of its own: what a search shows of it says whether it is whole
    Intake       files added by one request, under a key of its own: one job
    KnownStore   a vector store

A paper is cut small first and large later, without overlap. So the words of all chunks that one search shows of it are
all its words in order, each once, and how long the longest chunk is says which version it was.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from openai.types import VectorStoreSearchResponse as Found

from jobs.ledger.states import TERMINAL
from jobs.retrieval import attachments, ingestions
from tests.support.oracle import Told

#: Tokens of a chunk, at most: of a paper's first version and of its second.
SMALL, LARGE = 100, 200
_LETTERS = "bcdfghjklmnpqrstvwxz"
_UNSUPPORTED, _INVALID = frozenset({"unsupported_file"}), frozenset({"invalid_file"})
_REFUSED = (
    ("png", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), _UNSUPPORTED | _INVALID),  # as there is Tesseract, or not
    ("bin", bytes(range(256)) * 4, _UNSUPPORTED),
    ("txt", b"", _INVALID),
)
_ENDS = frozenset({"completed", "failed", "cancelled"})


@dataclass(slots=True)
class Paper:
    """A file of one store. `sizes` are those of the versions that a search may show."""

    key: str
    name: str
    content: bytes
    stem: str
    words: int
    refused: frozenset[str] = frozenset()  # the codes that its error may have
    file_id: str = ""
    attached: int = 0
    sizes: set[int] = field(default_factory=set)
    status: str = ""
    uncertain: bool = False  # it was to be cancelled: it came in or did not
    gone: bool = False  # its removal was asked for
    removed: bool = False  # and was answered

    @property
    def needle(self) -> str:
        return f"needle{self.stem}"

    @property
    def settled(self) -> bool:
        return self.gone or self.status in _ENDS

    @property
    def expected(self) -> str:
        return "failed" if self.refused else "completed"


@dataclass(slots=True)
class Intake:
    """Hold a request that brings in papers, and its answer. `disturbed`: some were taken from it meanwhile."""

    key: str
    store: "KnownStore"
    papers: list[Paper]
    batch: bool
    id: str = ""
    cancelled: bool = False
    disturbed: bool = False
    status: str = ""
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        return self.status in _ENDS or self.store.gone


@dataclass(slots=True)
class KnownStore:
    key: str
    id: str = ""
    papers: list[Paper] = field(default_factory=list)
    gone: bool = False
    removed: bool = False

    @property
    def there(self) -> list[Paper]:
        return [paper for paper in self.papers if not paper.gone]


def make_paper(number: int, rng: random.Random, *, refused: bool = False) -> Paper:
    """Make a document in one of the formats; or a damaged picture, something that is no text, or nothing at all."""
    key, stem = f"paper-{number:04d}", new_stem(rng)
    if refused:
        name, content, codes = rng.choice(_REFUSED)
        return Paper(key, f"{key}.{name}", content, stem, 0, codes)
    words, kind = rng.randint(40, 90), rng.choice(KINDS)
    return Paper(key, f"{key}.{kind}", written(kind, stem, words, rng), stem, words)


def new_stem(rng: random.Random) -> str:
    """Return the beginning of all words of one document, which no other document has."""
    return "".join(rng.choices(_LETTERS, k=8))


def written(kind: str, stem: str, count: int, rng: random.Random) -> bytes:
    """So many numbered words in order, and the needle somewhere among them."""
    words = [f"{stem}{n:03d}" for n in range(count)]
    words.insert(rng.randrange(count), f"needle{stem}")
    return _FORMATS[kind](words).encode()


def _markdown(words: list[str]) -> str:
    first, second = words[: len(words) // 2], words[len(words) // 2 :]
    return f"# One\n\n{_lines(first)}\n\n## Two\n\n{_lines(second)}\n"


def _html(words: list[str]) -> str:
    return f"<!doctype html><html><body><p>{' '.join(words)}</p></body></html>"


def _lines(words: list[str]) -> str:
    return "\n".join(" ".join(words[at : at + 10]) for at in range(0, len(words), 10))


def _table(words: list[str]) -> str:
    return "\n".join(",".join(words[at : at + 5]) for at in range(0, len(words), 5))


_FORMATS = {"md": _markdown, "html": _html, "txt": _lines, "csv": _table}
KINDS = tuple(_FORMATS)


def facts(found: Found) -> dict[str, Any]:
    """Where a chunk stands in its file."""
    extra: Any = (found.model_extra or {})["chunk"]
    return dict(extra)


def whole(paper: Paper, found: Sequence[Found], sizes: Iterable[int]) -> list[str]:
    """Check that a search for one paper shows all of one of its possible versions, and nothing else."""
    if not found:
        return []
    strangers = sorted({one.file_id for one in found} - {paper.file_id})
    chunks = sorted(found, key=lambda one: int(facts(one)["start"]))
    text = " ".join(part.text for one in chunks for part in one.content)
    numbers = [int(number) for number in re.findall(rf"{paper.stem}(\d{{3}})", text)]
    size = LARGE if max(int(facts(one)["tokens"]) for one in chunks) > SMALL else SMALL
    faults = [f"{paper.key}: a search for it shows {strangers}"] if strangers else []
    if numbers != list(range(paper.words)):
        faults.append(
            f"{paper.key}: a search shows {len(numbers)} of {paper.words} words: {_odd(numbers, paper.words)}"
        )
    if size not in sizes:
        faults.append(f"{paper.key}: a search shows the version of {size} tokens, not one of {sorted(sizes)}")
    return faults


def _odd(numbers: Sequence[int], words: int) -> str:
    counts = Counter(numbers)
    missing = [n for n in range(words) if n not in counts]
    twice = [n for n, times in counts.items() if times > 1]
    return f"missing {missing[:8]}, more than once {twice[:8]}"


def settled(paper: Paper, status: str, code: str | None) -> list[str]:
    """Check the status of a paper that is still in its store."""
    may = {paper.expected} | ({"cancelled"} if paper.uncertain else set())
    if status not in may or (status == "failed" and code not in paper.refused):
        return [f"{paper.key}: {paper.file_id} is {status} ({code}), not {' or '.join(sorted(may))}"]
    return []


def added_up(intake: Intake) -> list[str]:
    """Check that the counts of a batch add up to its files, and say what became of each without interference."""
    counts, total = intake.counts, len(intake.papers)
    ends = ("completed", "failed", "cancelled")
    if counts["total"] != total or counts["in_progress"] or sum(counts[name] for name in ends) != total:
        return [f"{intake.key}: {intake.id} is {intake.status} with {counts} of {total} files"]
    if intake.status not in ({"completed", "cancelled"} if intake.cancelled else {"completed"}):
        return [f"{intake.key}: {intake.id} is {intake.status}"]
    if intake.disturbed or intake.cancelled:
        return []
    due = Counter(paper.expected for paper in intake.papers)
    wrong = [name for name in ends if counts[name] != due[name]]
    return [f"{intake.key}: {counts}, expected {dict(due)}"] if wrong else []


def told(intake: Intake, events: Sequence[dict[str, Any]], hooks: Sequence[Told]) -> list[str]:
    """Check that each file that was made and the end have one numbered event, each sent under one webhook-id."""
    faults = []
    if [event["seq"] for event in events] != list(range(1, len(events) + 1)):
        faults.append(f"{intake.key}: events {[(event['seq'], event['type']) for event in events]}")
    kinds = ingestions.EVENTS.values() if intake.batch else [f"job.{state}" for state in TERMINAL]
    ends = [event for event in events if event["type"] in kinds]
    if len(ends) != 1 or ends[-1] is not events[-1]:
        faults.append(f"{intake.key}: ends {[event['type'] for event in events]}")
    files = [event for event in events if event["type"] in attachments.EVENTS]
    faults += _files_told(intake, files)
    for event in [*files, *(ends if intake.batch else ())]:  # a single file's job is told as its file
        ids = {hook.webhook_id for hook in hooks if hook.id == event["id"]}
        if len(ids) != 1:
            faults.append(f"{intake.key}: {event['type']} {event['id']} was told as {sorted(ids)}")
    return faults


def _files_told(intake: Intake, events: Sequence[dict[str, Any]]) -> list[str]:
    made = Counter((event["data"]["id"], event["type"].rpartition(".")[2]) for event in events)
    due = Counter((paper.file_id, paper.expected) for paper in intake.papers)
    if intake.disturbed or intake.cancelled or intake.store.gone:
        wrong = made - due
        return [f"{intake.key}: events of files {wrong}"] if wrong else []
    return [] if made == due else [f"{intake.key}: events of files {made - due} too many, {due - made} missing"]


def one_job_each(keys: Sequence[str], intakes: Sequence[Intake]) -> list[str]:
    found = Counter(keys)
    faults = [f"{one.key}: {found[one.key]} jobs for one key" for one in intakes if found[one.key] != 1]
    strays = set(found) - {one.key for one in intakes}
    return faults + ([f"ingestions of unknown keys: {sorted(strays)}"] if strays else [])
