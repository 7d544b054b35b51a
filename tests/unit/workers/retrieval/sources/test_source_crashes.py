"""A sync that dies, is ended, or loses its claim anywhere: the store is in the end what the folder is."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from jobs.ledger.tables import Job
from tests.support.ingestion import Killed, Works
from tests.support.source_sync import TEXTS, Sync, alive, assert_mirrors, of_folder, write
from tests.support.web_site import Site
from workers.retrieval.sources import folder
from workers.retrieval.sources.base import SourceEntry


@pytest.fixture
def mortal(each: Works) -> Works:
    """Dies around the writing of fetched bytes too."""
    whole = each.storage.writer

    @contextmanager
    def writer(path: str) -> Iterator[Any]:
        if path.startswith("files/"):
            each.reaper.tick()
        with whole(path) as handle:
            yield handle
        if path.startswith("files/"):
            each.reaper.tick()

    each.storage.writer = writer  # type: ignore[method-assign]
    return each


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.soak)])
def test_worker_death_at_any_point_leaves_store_equal_to_folder(mortal: Works, library: Path, every: int) -> None:
    shutil.rmtree(library)
    texts = {"kept.txt": "cherry " * 10, "changed.txt": "apple " * 10, "0.txt": "banana"}
    for name, text in texts.items():
        write(library / name, text)
    source = of_folder(mortal, library)
    last = 0
    for at in range(1, 200, every):
        (library / f"{last}.txt").unlink()
        del texts[f"{last}.txt"]
        last = at
        texts |= {f"{at}.txt": f"date {at} " * 10, "changed.txt": f"apricot {at} " * 10}
        for name, text in texts.items():
            write(library / name, text)
        mortal.ok(f"{source.path}/{source.id}/sync")
        mortal.reaper.arm(at)
        with suppress(Killed):
            mortal.drive()
        died, mortal.reaper.armed = not mortal.reaper.armed, False
        mortal.handle_worker_death()
        mortal.drive()

        assert source.now()["status"] == "completed"
        assert source.counts() == [3, 1, 1, 1, 1, 0]
        assert_mirrors(source, texts)
        if not died:
            break

    assert at >= 25


def test_commit_with_lost_answer_counts_once(each: Works, library: Path) -> None:
    each.db.loses_answers = True
    source = of_folder(each, library)
    write(library / "a.txt", "apricot")
    (library / "b/plum.md").unlink()
    source.again()

    assert source.counts() == [2, 0, 1, 1, 1, 0]
    with each.db.read() as session:
        assert set(session.scalars(select(Job.failed_attempts))) == {0}
    each.db.loses_answers = False
    assert_mirrors(source, {"a.txt": "apricot", "b/c/pear.html": TEXTS["b/c/pear.html"]})


def test_a_long_sync_lets_others_have_the_process_and_goes_on(inline: Works, library: Path, site: Site) -> None:
    inline.context = replace(inline.context, timings=replace(inline.context.timings, sync_shift=-1.0))
    source = of_folder(inline, library)
    assert source.counts() == [3, 3, 0, 0, 0, 0]
    assert_mirrors(source, TEXTS)
    urls = [site.url(f"/{n}") for n in range(3)]
    for n in range(3):
        site.put(f"/{n}", f"page {n}")
    pages = Sync(inline, inline.store(), type="url", urls=urls)
    inline.drive()

    pages.again()

    assert pages.counts() == [3, 0, 0, 0, 3, 0]
    assert [len(site.asked[f"/{n}"]) for n in range(3)] == [2, 2, 2]


@pytest.mark.parametrize("end", ["deleted", "cancelled"])
def test_a_sync_that_is_ended_while_it_fetches_attaches_nothing_more(
    each: Works, library: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    source = Sync(each, each.store(), type="folder", path=str(library))
    batch = source.now()["file_batch_id"]
    whole = folder.FolderReader.fetch

    def ending(*given: Any) -> Any:
        monkeypatch.setattr(folder.FolderReader, "fetch", whole)
        if end == "deleted":
            each.delete(f"{source.path}/{source.id}")
        else:
            each.ok(f"/jobs/{batch}/cancel")
        return whole(*given)

    monkeypatch.setattr(folder.FolderReader, "fetch", ending)
    each.drive()

    assert each.job(batch).state == "cancelled"
    assert (each.rows(source.store), source.items(), alive(each)) == ([], {}, set())


def test_planner_with_a_lost_claim_attaches_nothing(
    each: Works, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planner that was taken for dead goes on with its file when another has planned the sync."""
    source = Sync(each, each.store(), type="folder", path=str(library))
    whole = folder.FolderReader.fetch
    late: list[bool] = []

    def slow(*given: Any) -> Any:
        if not late:
            late.append(True)
            each.handle_worker_death()
            each.drive(until="parse")
        return whole(*given)

    monkeypatch.setattr(folder.FolderReader, "fetch", slow)
    each.drive()

    assert late
    assert source.counts() == [3, 3, 0, 0, 0, 0]
    assert_mirrors(source, TEXTS)


def test_sync_waits_while_the_storage_is_unavailable(
    inline: Works, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Sync(inline, inline.store(), type="folder", path=str(library))
    whole = inline.storage.writer

    @contextmanager
    def full(path: str) -> Iterator[Any]:
        with whole(path) as handle:
            monkeypatch.setattr(inline.storage, "writer", whole)
            yield Full(handle)

    monkeypatch.setattr(inline.storage, "writer", full)
    inline.handle(inline.messages()[0])
    waiting = inline.job(source.now()["file_batch_id"])
    inline.drive()

    assert (waiting.state, waiting.waiting_for) == ("queued", "disk")
    assert source.counts() == [3, 3, 0, 0, 0, 0]
    assert_mirrors(source, TEXTS)


class Full:
    """A file on a disk that is full."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def write(self, _: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.handle, name)


@pytest.mark.verify
def test_a_sync_waits_for_a_disk_that_has_room(inline: Works, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Sync(inline, inline.store(), type="folder", path=str(library))
    with monkeypatch.context() as patch:
        patch.setattr(type(inline.context), "low_on_disk", lambda _: True)
        inline.handle(inline.messages()[0])
    waiting = inline.job(source.now()["file_batch_id"])

    assert (waiting.state, waiting.waiting_for) == ("queued", "disk")
    assert source.items() == {}
    inline.drive()
    assert_mirrors(source, TEXTS)


def test_worker_stopped_during_fetch_leaves_rest_to_next_worker(
    inline: Works, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Sync(inline, inline.store(), type="folder", path=str(library))
    whole = folder.FolderReader.fetch
    fetched: list[str] = []

    def fetch(place: folder.FolderReader, entry: SourceEntry, *given: Any) -> Any:
        fetched.append(entry.key)
        if len(fetched) == 2:
            for handle in set(inline.context.heartbeat._handles):
                handle.end()
        return whole(place, entry, *given)

    monkeypatch.setattr(folder.FolderReader, "fetch", fetch)
    inline.handle(inline.messages()[0])
    left = inline.job(source.now()["file_batch_id"])
    kept = len(source.items())
    inline.drive()

    assert (left.state, kept) == ("queued", 1)
    assert sorted(fetched) == sorted([*TEXTS, fetched[1]]), "only what was not whole is fetched again"
    assert_mirrors(source, TEXTS)
