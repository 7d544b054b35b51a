"""The judgement of a folder and its store finds each violation, made by hand."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from openai.types import VectorStoreSearchResponse as Found

from tests.support import source_oracle
from tests.support.source_oracle import Mirror, Version

pytestmark = pytest.mark.verify


def _version(name: str, stem: str, **changes: Any) -> Version:
    return Version(name, stem * 8, 4, **changes)


def _mirror() -> Mirror:
    """Make a mirror with a document in its second version, an unchanged one and a removed one."""
    old, new = _version("a.txt", "b", removed=True, gone=True), _version("a.txt", "c", due=True, file_id="file-c")
    same = _version("b.txt", "d", due=True, file_id="file-d")
    return Mirror("mirror", Path(), versions=[old, new, same, _version("c.txt", "f", removed=True, gone=True)])


def _chunk(stem: str, words: range = range(4), file_id: str = "") -> Found:
    text = " ".join(f"{stem * 8}{n:03d}" for n in words)
    return Found.construct(
        file_id=file_id or f"file-{stem}", filename="x", content=[{"type": "text", "text": text}],
        chunk={"start": words.start},
    )  # fmt: skip


_ALL = [_chunk("d"), _chunk("c", range(2, 4)), _chunk("c", range(2))]


def _shown(found: list[Found], *, cut: bool = False) -> Iterable[str]:
    mirror = _mirror()
    return source_oracle.shown(mirror, found, mirror.due, mirror.removed, cut=cut)


def _items(**changes: Any) -> list[dict[str, Any]]:
    second = {"key": "b.txt", "file_id": "file-d", "previous_file_id": None, **changes}
    return [{"key": "a.txt", "file_id": "file-c", "previous_file_id": None}, second]


_FILES = {"file-c": "completed", "file-d": "completed"}


def _index(name: str, status: str, missing: int = 0) -> dict[str, Any]:
    return {"id": name, "status": status, "missing": missing}


def _indexed(indexes: list[dict[str, Any]], files: dict[str, str]) -> Iterable[str]:
    return source_oracle.indexed(_mirror(), indexes, {one["id"]: files for one in indexes})


@pytest.mark.parametrize(
    ("faults", "violation"),
    [
        (_shown(_ALL), ""),
        (_shown(_ALL[:1]), "a.txt (cccccccc) is not found, and is due"),
        (_shown(_ALL[:2]), "shown with 2 of 4 words"),
        (_shown([*_ALL, _chunk("c", range(1))]), "shown with 5 of 4 words"),
        (_shown([*_ALL, _chunk("c", file_id="file-x")]), "a.txt is found in 2 versions"),
        (_shown([*_ALL, _chunk("f")]), "c.txt (ffffffff) is found, and was removed"),
        (_shown([*_ALL, _chunk("g")]), "file-g (x) shows words of ['gggggggg']"),
        (_shown([*_ALL, _chunk("d", file_id="file-c")]), "file-c (x) shows words of"),
        (_shown([], cut=True), ""),
        (_shown(_ALL[:2], cut=True), ""),
        (_shown([*_ALL[:1], _chunk("c", range(0))], cut=True), ""),
        (_shown([*_ALL[:1], _chunk("f")], cut=True), "c.txt (ffffffff) is found, and was removed"),
        (_shown([*_ALL[:1], _chunk("g")], cut=True), "file-g (x) shows words of ['gggggggg']"),
        (
            _shown([*_ALL[:1], _chunk("c", range(2)), _chunk("c", file_id="file-x")], cut=True),
            "a.txt is found in 2 versions",
        ),
        (source_oracle.listed(_mirror(), _items(), _FILES), ""),
        (
            source_oracle.listed(_mirror(), _items()[:1], {"file-c": "completed"}),
            "items ['a.txt'], in the folder ['a.txt', 'b.txt']",
        ),
        (source_oracle.listed(_mirror(), _items(key="a.txt"), _FILES), "items ['a.txt'], in the folder"),
        (
            source_oracle.listed(_mirror(), _items(), {**_FILES, "file-b": "completed"}),
            "['file-b'] are in the store or of the source alone",
        ),
        (source_oracle.listed(_mirror(), _items(file_id="file-c"), {"file-c": "completed"}), "alone"),
        (source_oracle.listed(_mirror(), _items(previous_file_id="file-0"), _FILES), "has file-0 before it still"),
        (source_oracle.listed(_mirror(), _items(), {**_FILES, "file-d": "failed"}), "file-d is failed"),
        (
            source_oracle.listed(_mirror(), _items(file_id="file-e"), {"file-c": "completed", "file-e": "completed"}),
            "was file-d and is file-e, though it is as it was",
        ),
        (_indexed([_index("x", "active"), _index("y", "previous")], _FILES), ""),
        (_indexed([_index("x", "ready"), _index("y", "previous")], _FILES), "the indexes [] are in use"),
        (_indexed([_index("x", "active"), _index("y", "active")], _FILES), "the indexes ['x', 'y'] are in use"),
        (_indexed([_index("x", "active"), _index("y", "failed", 1)], _FILES), "lacks 1 files"),
        (_indexed([_index("x", "active")], {"file-c": "completed"}), "differ by [('file-d', 'completed')]"),
        (
            _indexed([_index("x", "active")], {**_FILES, "file-b": "completed"}),
            "differ by [('file-b', 'completed')]",
        ),
    ],
)
def test_search_store_or_index_that_is_not_the_folder_is_found(faults: Iterable[str], violation: str) -> None:
    found = "; ".join(faults)

    assert violation in found
    assert bool(found) is bool(violation)


def test_two_versions_of_a_document_are_never_shown_at_once() -> None:
    mirror = _mirror()
    mirror.versions[0].removed = False

    [found] = source_oracle.shown(mirror, [*_ALL, _chunk("b")], mirror.due, mirror.removed)

    assert "a.txt is found in 2 versions at once" in found


def test_successful_sync_guarantees_documents_present_at_its_start() -> None:
    mirror = Mirror("mirror", Path(), versions=[_version("a.txt", "b"), _version("b.txt", "c", gone=True)])
    here, gone = mirror.begun()
    mirror.versions.append(_version("c.txt", "d"))
    here.append(_version("d.txt", "f", gone=True))  # replaced while it went on

    mirror.ended_well(here, gone)

    assert [one.name for one in mirror.due] == ["a.txt"]
    assert [one.name for one in mirror.removed] == ["b.txt"]


_LACKING = {"code": "not_readable", "message": "It cannot be read: No such file or directory."}


def _item(key: str = "a.txt", **error: str) -> dict[str, Any]:
    return {"key": key, "last_change": "failed", "last_error": {**_LACKING, **error}}


@pytest.mark.parametrize(
    ("code", "items", "dropped", "passes"),
    [
        ("items_failed", [_item()], False, True),
        ("items_failed", [_item(), _item("x.txt")], False, True),  # one came and went
        ("not_readable", [_item()], False, True),
        ("items_failed", [_item(), _item("b.txt")], False, False),  # this one is there
        ("items_failed", [_item(code="server_error")], False, False),
        ("items_failed", [_item(message="It cannot be read: Permission denied.")], False, False),
        ("items_failed", [], False, False),
        ("files_failed", [_item()], False, False),
        ("index_removed", [], False, False),
        ("index_removed", [], True, True),
        ("cancelled", [], True, True),
        ("source_empty", [], True, False),
        ("items_failed", [_item("b.txt")], True, False),
    ],
)
def test_a_sync_may_fail_only_for_an_index_that_was_removed_or_documents_that_were(
    code: str, items: list[dict[str, Any]], dropped: bool, passes: bool
) -> None:
    here = [_version("a.txt", "b", gone=True), _version("b.txt", "c")]

    assert source_oracle.excused({"code": code, "message": "no"}, items, here, dropped=dropped) is passes


def test_a_sync_that_fails_without_a_word_is_not_excused() -> None:
    assert not source_oracle.excused(None, [], [], dropped=True)


def _counts(**changes: int) -> dict[str, int]:
    return {"seen": 2, "added": 0, "changed": 1, "removed": 1, "unchanged": 1, "failed": 0, **changes}


@pytest.mark.parametrize(
    ("counts", "same", "passes"),
    [
        (_counts(), False, True),
        (_counts(seen=3), False, False),
        (_counts(unchanged=0), False, False),
        (_counts(failed=1), False, False),
        (_counts(), True, False),
        (_counts(changed=0, unchanged=2), True, False),
        (_counts(changed=0, removed=0, unchanged=2), True, True),
    ],
)
def test_counts_of_a_sync_are_of_all_documents_and_nothing_comes_in_that_is_as_it_was(
    counts: dict[str, int], same: bool, passes: bool
) -> None:
    assert (not source_oracle.counted(_mirror(), counts, 2, same=same)) is passes


@pytest.mark.parametrize(
    ("status", "counts", "passes"),
    [
        ("building", {"failed": 0, "cancelled": 0}, True),
        ("failed", {"failed": 0, "cancelled": 0}, False),
        ("previous", {"failed": 1, "cancelled": 0}, False),
        ("active", {"failed": 0, "cancelled": 1}, False),
    ],
)
def test_an_index_of_which_something_failed_is_found(status: str, counts: dict[str, int], passes: bool) -> None:
    assert (not source_oracle.standing(_mirror(), {**_index("x", status), "file_counts": counts})) is passes
