"""Sources from end to end in this process: synced, changed, synced again, searched."""

import os
from pathlib import Path
from typing import Any

import pytest
import s3fs
from msgspec.structs import replace
from sqlalchemy import select, update

from jobs.clock import now
from jobs.db.engine import Database
from jobs.files.tables import File
from jobs.retrieval.tables import Source
from tests.support.ingestion import ReadOnce, Works, works
from tests.support.services import S3
from tests.support.source_sync import TEXTS, Sync, alive, assert_mirrors, of_folder, write
from tests.support.web_site import Site
from tests.unit.workers.retrieval.sources.conftest import running
from workers.retrieval.parsing import office
from workers.retrieval.parsing.contract import unsupported_file
from workers.retrieval.sources import folder
from workers.retrieval.sources.base import SourceEntry
from workers.retrieval.sources.syncing import SourceSyncRecorder
from workers.vectors.open_vectors import open_vectors


def test_folder_is_ingested_and_stays_in_sync(each: Works, library: Path) -> None:
    source = of_folder(each, library, attributes={"kind": "fruit"})

    told = source.now()
    assert (told["status"], told["last_error"]) == ("completed", None)
    assert source.counts() == [3, 3, 0, 0, 0, 0]
    assert source.names("pear") == {"pear.html"}
    assert {row.attributes["kind"] for row in each.rows(source.store)} == {"fruit"}
    assert each.get(f"/vector_stores/{source.store}/file_batches/{told['file_batch_id']}")["status"] == "completed"

    write(library / "a.txt", "apricot " * 30)
    (library / "b/plum.md").unlink()
    write(library / "new.txt", "quince quince")
    embedded = each.engine.texts
    assert source.again()["status"] == "completed"

    assert source.counts() == [3, 1, 1, 1, 1, 0]
    assert each.engine.texts - embedded == sum(
        row.entries for row in each.rows(source.store) if row.filename in ("a.txt", "new.txt")
    )
    assert (source.names("apple"), source.names("plum")) == (set(), set())
    assert (source.names("apricot"), source.names("quince")) == ({"a.txt"}, {"new.txt"})
    assert_mirrors(
        source, {"a.txt": "apricot " * 30, "new.txt": "quince quince", "b/c/pear.html": TEXTS["b/c/pear.html"]}
    )


def test_touched_unchanged_file_is_not_reingested(inline: Works, library: Path) -> None:
    source = of_folder(inline, library)
    before = {key: item.file_id for key, item in source.items().items()}
    os.utime(library / "a.txt", (1, 1))

    source.again()

    assert source.counts() == [3, 0, 0, 0, 3, 0]
    assert {key: item.file_id for key, item in source.items().items()} == before
    assert_mirrors(source, TEXTS)


def test_nothing_is_read_that_looks_the_same(inline: Works, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = of_folder(inline, library)
    monkeypatch.setattr(folder.FolderReader, "fetch", None)

    assert source.again()["status"] == "completed"

    assert source.counts() == [3, 0, 0, 0, 3, 0]


def test_old_version_is_found_until_new_version_completes_and_never_both(inline: Works, library: Path) -> None:
    source = of_folder(inline, library)
    write(library / "a.txt", "apple apricot " * 20)
    inline.ok(f"{source.path}/{source.id}/sync")

    seen = []
    while inline.messages():
        found = {one.file_id for one in inline.search(source.store, "apple", limit=50) if "apple" in one.text}
        assert len(found) == 1
        seen += found
        inline.handle(inline.messages()[0])

    assert seen[:3] == [seen[0]] * 3
    assert source.names("apricot") == {"a.txt"}
    assert source.items()["a.txt"].file_id != seen[0]
    assert_mirrors(source, TEXTS | {"a.txt": "apple apricot " * 20})


def test_failed_new_version_leaves_old_version_searchable(each: Works, library: Path) -> None:
    source = of_folder(each, library)
    old = source.items()["a.txt"].file_id
    (library / "a.txt").write_bytes(b"\x7fELF\x00\x01")

    told = source.again()

    assert (told["status"], told["last_error"]["code"]) == ("completed", "files_failed")
    assert source.counts() == [3, 0, 0, 0, 2, 1]
    assert source.names("apple") == {"a.txt"}
    assert source.items()["a.txt"].previous_id == old
    refused = each.row(source.store, str(source.items()["a.txt"].file_id)).version
    source.by_schedule()  # what was refused for what it is would be refused again
    assert source.counts() == [3, 0, 0, 0, 2, 1]
    assert each.row(source.store, str(source.items()["a.txt"].file_id)).version == refused

    write(library / "a.txt", "avocado " * 9)
    source.again()
    assert source.counts() == [3, 0, 1, 0, 2, 0]
    assert source.names("apple") == set()
    assert_mirrors(source, TEXTS | {"a.txt": "avocado " * 9})


def test_unsupported_file_is_retried_only_by_requested_sync(
    inline: Works, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Try again after the installation has got another library, a higher limit, or a moment's rest."""

    def lacks(*_: object) -> None:
        raise unsupported_file("Word can be read where Nightmill is installed with the extra 'parse'.")

    with monkeypatch.context() as patched:
        patched.setattr(inline.parser, "parse", lacks)
        source = of_folder(inline, library)
    assert source.counts() == [3, 0, 0, 0, 0, 3]
    before = {key: item.file_id for key, item in source.items().items()}

    source.by_schedule()
    assert source.counts() == [3, 0, 0, 0, 0, 3]
    source.again()
    assert source.counts() == [3, 3, 0, 0, 0, 0]
    assert {key: item.file_id for key, item in source.items().items()} == before
    assert_mirrors(source, TEXTS)


def test_partially_read_file_is_reread_only_by_requested_sync(
    each: Works, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is a Tesseract by now."""
    parse = each.parser.parse
    with monkeypatch.context() as patched:
        patched.setattr(each.parser, "parse", lambda *asked: replace(parse(*asked), unread=asked[1] == "a.txt"))
        source = of_folder(each, library)
    file = str(source.items()["a.txt"].file_id)
    before = each.row(source.store, file).document
    monkeypatch.setattr(office, "sees", lambda: True)

    source.by_schedule()
    assert each.row(source.store, file).document == before
    source.again()
    assert source.counts() == [3, 0, 1, 0, 2, 0]
    assert each.row(source.store, file).document != before
    source.again()
    assert source.counts() == [3, 0, 0, 0, 3, 0]
    assert_mirrors(source, TEXTS)


def test_version_completed_in_other_store_replaces_nothing_in_this_store(each: Works, library: Path) -> None:
    """A client brings the new file into another store, where it is done before this one."""
    source = of_folder(each, library)
    write(library / "a.txt", "apple apricot")
    each.ok(f"{source.path}/{source.id}/sync")
    each.drive(until="parse")
    newer, other = str(source.items()["a.txt"].file_id), each.store()
    job = each.attach(other, newer)
    while each.job(job).state != "succeeded":
        each.handle(next(message for message in each.messages() if message.job_id == job))

    assert source.names("apple") == {"a.txt"}
    assert source.items()["a.txt"].previous_id is not None
    each.drive()
    assert source.items()["a.txt"].previous_id is None
    assert source.names("apricot") == {"a.txt"}


def test_cancelled_files_are_ingested_by_next_sync(inline: Works, library: Path) -> None:
    source = Sync(inline, inline.store(), type="folder", path=str(library))
    inline.drive(until="index")
    inline.ok(f"/jobs/{source.now()['file_batch_id']}/cancel")
    inline.drive()
    told = source.now()
    assert (told["status"], told["last_error"]["code"]) == ("failed", "cancelled")

    source.again()

    assert source.counts() == [3, 3, 0, 0, 0, 0]
    assert_mirrors(source, TEXTS)


def test_file_deleted_during_reingestion_returns_as_new_file(
    inline: Works, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Sync(inline, inline.store(), type="folder", path=str(library))
    inline.drive(until="index")
    inline.ok(f"/jobs/{source.now()['file_batch_id']}/cancel")
    inline.drive()
    gone = source.items()["a.txt"].file_id
    attach, asked = SourceSyncRecorder.attach, list[str]()

    def late(recorder: SourceSyncRecorder, entry: SourceEntry, file_id: str, *facts: Any) -> None:
        if file_id == gone:
            inline.delete(f"/files/{gone}")
            asked.append(file_id)
        attach(recorder, entry, file_id, *facts)

    monkeypatch.setattr(SourceSyncRecorder, "attach", late)
    source.again()

    assert source.counts() == [3, 3, 0, 0, 0, 0]
    assert_mirrors(source, TEXTS)
    assert asked == [gone]
    assert source.items()["a.txt"].file_id != gone


def test_file_removed_by_client_is_restored_by_next_sync(inline: Works, library: Path) -> None:
    source = of_folder(inline, library)
    items = source.items()
    inline.delete(f"/vector_stores/{source.store}/files/{items['a.txt'].file_id}")
    inline.delete(f"/files/{items['b/plum.md'].file_id}")

    source.again()

    assert source.counts() == [3, 2, 0, 0, 1, 0]
    assert_mirrors(source, TEXTS)


@pytest.mark.parametrize("loss", ["away", "empty", "link", "withdrawn"])
def test_sync_of_unavailable_folder_fails_and_removes_no_file(
    inline: Works, library: Path, tmp_path: Path, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = of_folder(inline, library)
    library.rename(tmp_path / "aside")
    if loss == "empty":
        library.mkdir()
    elif loss == "link":
        library.mkdir()
        library.rmdir()
        library.symlink_to("/etc")
    elif loss == "withdrawn":
        (tmp_path / "aside").rename(library)
        object.__setattr__(inline.context.config, "source_folders", ())

    told = source.again()

    assert told["status"] == "failed"
    assert told["last_error"]["code"] in ("folder_not_readable", "source_empty", "folder_not_allowed")
    assert source.counts() == [0, 0, 0, 0, 0, 0]
    assert inline.job(told["file_batch_id"]).state == "failed"
    assert source.names("apple") == {"a.txt"}
    assert alive(inline) == {item.file_id for item in source.items().values()}


def test_a_source_of_too_many_files_changes_nothing(inline: Works, library: Path) -> None:
    source = of_folder(inline, library)
    (library / "a.txt").unlink()
    for n in range(12):
        write(library / f"{n}.txt", "many")

    told = source.again()

    assert (told["status"], told["last_error"]["code"]) == ("failed", "too_many_items")
    assert source.names("apple") == {"a.txt"}
    assert source.items().keys() == TEXTS.keys()


def test_a_file_that_is_too_large_fails_alone(
    sqlite: Database, tmp_path: Path, parser: ReadOnce, library: Path
) -> None:
    settings = {"source_folders": (str(library),), "file_max_bytes": 1000}
    write(library / "big.txt", "big " * 1000)
    with works(tmp_path / "data", sqlite.url, open_vectors("memory:", tmp_path), parser, **settings) as inline:
        source = of_folder(inline, library)

        assert source.counts() == [4, 3, 0, 0, 0, 1]
        told = source.now()
        assert (told["status"], told["last_error"]["code"]) == ("completed", "items_failed")
        assert "big.txt" in told["last_error"]["message"]
        assert source.items()["big.txt"].error["code"] == "file_too_large"
        assert source.items()["big.txt"].file_id is None


def test_timed_out_sync_fails_and_removes_nothing(
    inline: Works, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = of_folder(inline, library)
    (library / "b/plum.md").unlink()
    write(library / "a.txt", "apricot")
    inline.ok(f"{source.path}/{source.id}/sync")
    with inline.db.write() as session:
        session.execute(update(Source).values(began_at=now() - 10_000))

    inline.drive()

    told = source.now()
    assert (told["status"], told["last_error"]["code"]) == ("failed", "source_timeout")
    assert source.names("plum") == {"plum.md"}
    assert source.again()["status"] == "completed"
    assert source.counts() == [2, 0, 1, 1, 1, 0]


def test_s3_prefix_is_synced_with_credentials_from_environment(
    inline: Works, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = s3.options["client_kwargs"]
    for name, value in {
        "AWS_ENDPOINT_URL": facts["endpoint_url"],
        "AWS_DEFAULT_REGION": facts["region_name"],
        "AWS_ACCESS_KEY_ID": s3.options["key"],
        "AWS_SECRET_ACCESS_KEY": s3.options["secret"],
    }.items():
        monkeypatch.setenv(name, value)
    objects = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False, **s3.options)
    folder = f"{s3.bucket}/library/{inline.db.engine.dialect.name}"
    objects.pipe({f"{folder}/{name}": text.encode() for name, text in TEXTS.items()})
    source = Sync(inline, inline.store(), type="s3", prefix=f"s3://{folder}")
    inline.drive()
    assert source.counts() == [3, 3, 0, 0, 0, 0]
    assert_mirrors(source, TEXTS)

    objects.pipe(f"{folder}/a.txt", b"apricot")
    objects.rm(f"{folder}/b/plum.md")
    source.again()
    assert source.counts() == [2, 0, 1, 1, 1, 0]
    assert (source.names("plum"), source.names("apricot")) == (set(), {"a.txt"})

    objects.rm(folder, recursive=True)
    assert source.again()["last_error"]["code"] == "source_empty"
    assert source.names("apricot") == {"a.txt"}


def test_urls_are_ingested_and_only_changed_urls_are_reingested(inline: Works, site: Site) -> None:
    site.put("/a.txt", "apple apple", etag='"1"')
    site.put("/b", "<p>banana</p>", type="text/html")
    source = Sync(inline, inline.store(), type="url", urls=[site.url("/a.txt"), site.url("/b")])
    inline.drive()
    assert source.counts() == [2, 2, 0, 0, 0, 0]
    assert source.names("banana") == {"b.html"}

    source.again()
    assert source.counts() == [2, 0, 0, 0, 2, 0]
    assert site.statuses("/a.txt") == [200, 304]

    site.put("/a.txt", "apricot", etag='"2"')
    source.again()
    assert source.counts() == [2, 0, 1, 0, 1, 0]
    assert (source.names("apple"), source.names("apricot")) == (set(), {"a.txt"})


def test_missing_url_is_removed_and_failing_url_stays(inline: Works, site: Site) -> None:
    for name in ("a", "b", "c"):
        site.put(f"/{name}.txt", f"word {name}{name}{name}")
    source = Sync(inline, inline.store(), type="url", urls=[site.url(f"/{name}.txt") for name in ("a", "b", "c")])
    inline.drive()
    site.put("/a.txt", "", status=404)
    site.put("/b.txt", "", status=503)

    told = source.again()

    assert source.counts() == [2, 0, 0, 1, 1, 1]
    assert (told["status"], told["last_error"]["code"]) == ("completed", "items_failed")
    assert {one.filename for one in inline.search(source.store, "word")} == {"b.txt", "c.txt"}
    site.put("/b.txt", "word bbb")
    assert source.again()["last_error"] is None  # that it is gone is no news
    assert source.counts() == [2, 0, 0, 0, 2, 0]
    site.put("/a.txt", "word aaa")
    source.again()
    assert source.counts() == [3, 1, 0, 0, 2, 0]


def test_failed_items_are_read_after_all_others(inline: Works, site: Site) -> None:
    site.put("/b.txt", "banana")
    urls = [site.url(f"/{name}.txt") for name in ("a", "b", "c")]
    source = Sync(inline, inline.store(), type="url", urls=urls)
    inline.drive()
    assert source.counts() == [3, 1, 0, 0, 0, 2]
    site.put("/a.txt", "apple")
    site.put("/c.txt", "cherry")
    site.asked.clear()

    source.again()

    assert list(site.asked) == ["/b.txt", "/a.txt", "/c.txt"]
    assert source.counts() == [3, 2, 0, 0, 1, 0]


@pytest.mark.parametrize(("status", "code"), [(500, "http_status"), (404, "not_found"), (0, "url_unreachable")])
def test_a_source_of_which_nothing_can_be_had_has_failed(inline: Works, site: Site, status: int, code: str) -> None:
    site.put("/a.txt", "apple")
    source = Sync(inline, inline.store(), type="url", url=site.url("/a.txt" if status != 404 else "/never.txt"))
    if status == 404:
        inline.drive()
    else:
        inline.drive()
        site.put("/a.txt", "", status=status)
        source.again()

    told = source.now()
    assert (told["status"], told["last_error"]["code"]) == ("failed", code)
    assert source.names("apple") == (set() if status == 404 else {"a.txt"})


def test_error_omits_query_string_of_url(inline: Works, site: Site) -> None:
    source = Sync(inline, inline.store(), type="url", url=site.url("/x?token=hush"))
    inline.drive()

    assert "hush" not in str(source.now()["last_error"])
    assert "/x" in str(source.now()["last_error"])


def test_a_file_for_which_its_project_has_no_space_is_not_stored(
    sqlite: Database, tmp_path: Path, parser: ReadOnce, library: Path
) -> None:
    write(library / "a.txt", "apple " * 10_000)
    with running(sqlite, tmp_path, parser, library, project_max_bytes=50_000) as inline:
        source = of_folder(inline, library)
        source.now()

        failed = {key: item.error for key, item in source.items().items() if item.error}
        assert {key: error["code"] for key, error in failed.items() if error} == {"a.txt": "project_storage_full"}
        with sqlite.read() as session:
            paths = set(session.scalars(select(File.path)))
        assert set(inline.storage.list("files")) == paths
