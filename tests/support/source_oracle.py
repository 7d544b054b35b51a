"""A folder and the vector store that is kept in step with it, and what must be true of the two.

Version   what a document was between two changes of it: numbered words that are nobody else's
Mirror    the folder as it is now, everything that was ever in it, and what the store must have of it

written ──a sync that began later ended well──▶ due: searches find it, all of it
   └─replaced, removed─▶ gone ──a sync that began later ended well──▶ removed: nobody finds it
"""

import errno
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openai.types import VectorStoreSearchResponse as Found

_WORD = re.compile(r"\b([a-z]{8})(\d{3})\b")
#: Its job is cancelled; and where another index is in use by then, that may lack what the sync has brought.
_OF_A_DROPPED_INDEX = ("index_removed", "cancelled", "files_failed")
_OF_ITEMS = ("items_failed", "not_readable")  # of some of them, or of all


@dataclass(slots=True, eq=False)
class Version:
    """`file_id` is what the first sync that ended well has made of it."""

    name: str
    stem: str
    words: int
    content: bytes = b""
    file_id: str = ""
    gone: bool = False  # from the folder
    due: bool = False
    removed: bool = False

    @property
    def needle(self) -> str:
        return f"needle{self.stem}"

    def __str__(self) -> str:
        return f"{self.name} ({self.stem})"


@dataclass(slots=True)
class Mirror:
    key: str
    folder: Path
    id: str = ""
    source: str = ""
    versions: list[Version] = field(default_factory=list)

    @property
    def here(self) -> dict[str, Version]:
        """The documents of the folder, by name."""
        return {one.name: one for one in self.versions if not one.gone}

    @property
    def due(self) -> list[Version]:
        return [one for one in self.versions if one.due]

    @property
    def removed(self) -> list[Version]:
        return [one for one in self.versions if one.removed]

    def begun(self) -> tuple[list[Version], list[Version]]:
        """Of a sync that begins now: what is there, and what is not any more."""
        return list(self.here.values()), [one for one in self.versions if one.gone]

    def ended_well(self, here: Sequence[Version], gone: Sequence[Version]) -> None:
        """Record that a sync that had `begun` with these documents ended well."""
        for one in gone:
            one.removed = True
        for one in here:
            one.due = not one.gone


def shown(
    mirror: Mirror,
    found: Sequence[Found],
    due: Collection[Version],
    removed: Collection[Version],
    *,
    cut: bool = False,
) -> list[str]:
    """Return what is wrong with the result of one search of a whole store.

    `due` was in the store all the while, `removed` was gone before the search began. A store that is `cut`, because it
    has more than a search may show, need not show anything in particular, nor all of it.
    """
    known, files = {one.stem: one for one in mirror.versions}, defaultdict(list)
    for one in found:
        files[one.file_id].append(one)
    there: list[Version] = []
    faults: list[str] = []
    for file_id, chunks in files.items():
        words = _words(chunks)
        stems = {stem for stem, _ in words}
        strangers = [stem for stem in stems if stem not in known]
        there += [known[stem] for stem in stems if stem in known]
        if not stems and cut:
            continue  # of its chunks this is one without a word of its own
        if strangers or len(stems) != 1:
            faults.append(f"{mirror.key}: {file_id} ({chunks[0].filename}) shows words of {sorted(stems)}")
        elif not cut and words != [(stem, n) for stem in stems for n in range(known[stem].words)]:
            one_version = known[words[0][0]]
            faults.append(f"{mirror.key}: {one_version} is shown with {len(words)} of {one_version.words} words")
    faults += [f"{mirror.key}: {one} is found, and was removed" for one in there if one in removed]
    faults += [f"{mirror.key}: {one} is not found, and is due" for one in due if not cut and one not in there]
    twice = [name for name, times in Counter(one.name for one in there).items() if times > 1]
    return faults + [f"{mirror.key}: {name} is found in {_count(there, name)} versions at once" for name in twice]


def _words(chunks: Sequence[Found]) -> list[tuple[str, int]]:
    """All that one file shows, in its order."""
    ordered = sorted(chunks, key=lambda one: int(((one.model_extra or {})["chunk"])["start"]))
    text = " ".join(part.text for one in ordered for part in one.content)
    return [(stem, int(number)) for stem, number in _WORD.findall(text)]


def _count(there: Sequence[Version], name: str) -> int:
    return sum(one.name == name for one in there)


def listed(mirror: Mirror, items: Sequence[Mapping[str, Any]], files: Mapping[str, str]) -> Iterator[str]:
    """Return what is wrong after a successful sync of a folder that has not changed since the sync began.

    The `items` are those of the source, and the `files` those of the store, with their status. Each document is one
    file and nothing else is there; an unchanged document keeps its file.
    """
    here, by_name = mirror.here, {str(item["key"]): item for item in items}
    if sorted(by_name) != sorted(here) or len(items) != len(here):
        yield f"{mirror.key}: items {sorted(by_name)}, in the folder {sorted(here)}"
    made = {str(item["file_id"]) for item in items}
    if made != set(files) or len(made) != len(items):
        yield f"{mirror.key}: {sorted(made ^ set(files))} are in the store or of the source alone"
    for name in by_name.keys() & here.keys():
        item, one = by_name[name], here[name]
        if item["previous_file_id"]:
            yield f"{mirror.key}: {one} has {item['previous_file_id']} before it still"
        if one.file_id and item["file_id"] != one.file_id:
            yield f"{mirror.key}: {one} was {one.file_id} and is {item['file_id']}, though it is as it was"
        one.file_id = str(item["file_id"])
    for name, status in files.items():
        if status != "completed":
            yield f"{mirror.key}: {name} is {status}"


def excused(
    error: Mapping[str, Any] | None, items: Sequence[Mapping[str, Any]], here: Collection[Version], *, dropped: bool
) -> bool:
    """Return whether a failed sync that began with the documents `here` is no violation.

    An index was `dropped` under it, or every document that it could not read was gone from the folder at that time.
    """
    code = error["code"] if error else None
    if dropped and code in _OF_A_DROPPED_INDEX:
        return True
    lacking = [item for item in items if item["last_change"] == "failed"]
    still = {one.name for one in here if not one.gone}
    vanished = [item for item in lacking if _has_vanished(item) and item["key"] not in still]
    return code in _OF_ITEMS and bool(lacking) and vanished == lacking


def _has_vanished(item: Mapping[str, Any]) -> bool:
    error = item["last_error"]
    return error["code"] == "not_readable" and os.strerror(errno.ENOENT) in error["message"]


def counted(mirror: Mirror, counts: Mapping[str, int], documents: int, *, same: bool) -> list[str]:
    """Return what is wrong with a sync's counts for an unchanged folder; `same`: unchanged since the sync before."""
    came, went = counts["added"] + counts["changed"], counts["removed"]
    if counts["seen"] != documents or came + counts["unchanged"] != documents or counts["failed"]:
        return [f"{mirror.key}: {counts} of {documents} documents"]
    return [f"{mirror.key}: {counts}, and nothing has changed"] if same and came + went else []


def standing(mirror: Mirror, index: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the state of an index at any time: nothing may have failed or been cancelled."""
    counts, status = index["file_counts"], index["status"]
    if status in ("failed", "cancelled") or counts["failed"] or counts["cancelled"]:
        return [f"{mirror.key}: the index {index['id']} is {status}, of {counts}, {index['missing']} missing"]
    return []


def indexed(mirror: Mirror, indexes: Sequence[Mapping[str, Any]], files: Mapping[str, Mapping[str, str]]) -> list[str]:
    """When nothing goes on any more: one index is in use, and every one has every file. `files` are those of each."""
    active = [one["id"] for one in indexes if one["status"] == "active"]
    faults = [] if len(active) == 1 else [f"{mirror.key}: the indexes {active} are in use"]
    due = {one.file_id: "completed" for one in mirror.here.values()}
    for index in indexes:
        name, missing = index["id"], index["missing"]
        if files[name] != due:
            wrong = sorted(set(files[name].items()) ^ set(due.items()))
            faults.append(f"{mirror.key}: the index {name} ({index['status']}) and the folder differ by {wrong}")
        if missing:
            faults.append(f"{mirror.key}: the index {name} ({index['status']}) lacks {missing} files")
    return faults
