"""Every storage passes the same tests: a folder, and S3 as moto speaks it."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import NotFound, StorageFull, StorageUnavailable
from jobs.platform.storage import DiskStorage, ObjectStorage, Storage, open_storage
from tests.support.services import S3

MB = 1 << 20


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.verify)])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Return a function that opens the same storage again, as another process would."""
    if request.param == "disk":
        return lambda: open_storage(f"file://{tmp_path}/files")
    server: S3 = request.getfixturevalue("s3")
    prefix = f"s3://{server.bucket}/{request.node.name}".replace("[", "-").replace("]", "")
    return lambda: ObjectStorage(prefix, skip_instance_cache=True, **server.options)


@pytest.fixture
def store(stores: Any) -> Storage:
    opened: Storage = stores()
    return opened


def read(store: Storage, path: str, offset: int = 0) -> bytes:
    with store.reader(path, offset) as handle:
        content: bytes = handle.read()
    return content


class Interrupted(Exception):
    """Something else went wrong while a file was being written."""


def write_half(store: Storage, path: str, size: int = 10) -> None:
    with store.writer(path) as handle:
        handle.write(b"x" * size)
        raise Interrupted


def test_stored_object_can_be_read(store: Storage) -> None:
    store.put("jobs/1/segments/000000-1-0.jsonl", b"0\t1\t{}\n")

    assert read(store, "jobs/1/segments/000000-1-0.jsonl") == b"0\t1\t{}\n"
    assert store.size("jobs/1/segments/000000-1-0.jsonl") == 7


def test_folders_lists_direct_subfolders_only(store: Storage) -> None:
    assert list(store.folders("jobs")) == []
    for path in ("jobs/1/a", "jobs/1/b", "jobs/2/in/side", "jobs/file", "others/3/a"):
        store.put(path, b"x")

    assert sorted(store.folders("jobs")) == ["1", "2"]


@pytest.mark.parametrize(
    "name", ["", "files/", "files/*", "files/[ab]", "files/?"], ids=["empty", "folder", "any", "set", "one"]
)
def test_invalid_name_is_not_deleted(store: Storage, name: str) -> None:
    store.put("files/a", b"x")

    with pytest.raises(ValueError, match=r".*"):
        store.delete(name)

    assert store.list("files") == ["files/a"]


def test_write_is_immediately_visible_to_second_client(stores: Any) -> None:
    writer, reader = stores(), stores()
    assert reader.list("jobs") == []

    writer.put("jobs/1/a", b"first")
    assert reader.list("jobs") == ["jobs/1/a"]
    assert reader.size("jobs/1/a") == 5
    writer.put("jobs/1/a", b"second!")
    writer.put("jobs/1/b", b"")

    assert (read(reader, "jobs/1/a"), reader.size("jobs/1/a")) == (b"second!", 7)
    assert reader.list("jobs") == ["jobs/1/a", "jobs/1/b"]


def test_an_empty_object_is_an_object(store: Storage) -> None:
    with store.writer("files/empty"):
        pass

    assert (read(store, "files/empty"), store.size("files/empty")) == (b"", 0)


def test_a_large_object_is_written_and_read_in_pieces(store: Storage) -> None:
    piece = os.urandom(MB)
    with store.writer("files/large") as handle:
        for _ in range(12):
            handle.write(piece)

    assert store.size("files/large") == 12 * MB
    with store.reader("files/large", 11 * MB) as handle:
        assert handle.read(MB) == piece
        assert handle.read(1) == b""


def test_a_reader_starts_at_an_offset_and_gives_lines(store: Storage) -> None:
    store.put("files/lines", b"one\ntwo\nthree\n")

    with store.reader("files/lines", 4) as handle:
        assert list(handle) == [b"two\n", b"three\n"]


def test_nothing_is_seen_before_the_writer_closes(stores: Any) -> None:
    store, other = stores(), stores()
    with store.writer("files/new") as handle:
        handle.write(b"x" * 10)
        with pytest.raises(NotFound):
            other.size("files/new")
        assert other.list("files") == []

    assert other.size("files/new") == 10


@pytest.mark.parametrize("size", [10, 60 * MB], ids=["small", "larger than a part"])
def test_nothing_is_seen_of_a_write_that_was_interrupted(stores: Any, size: int) -> None:
    with pytest.raises(Interrupted):
        write_half(stores(), "files/half", size)

    with pytest.raises(NotFound):
        stores().size("files/half")
    assert stores().list("files") == []


def test_interrupted_write_leaves_previous_content(store: Storage) -> None:
    store.put("files/one", b"before")

    with pytest.raises(Interrupted):
        write_half(store, "files/one")

    assert read(store, "files/one") == b"before"


def test_missing_object_is_not_found(store: Storage) -> None:
    with pytest.raises(NotFound) as missing:
        read(store, "nowhere")
    assert str(missing.value) == "What was stored is gone.", "clients are shown it: it names no path"
    with pytest.raises(NotFound):
        store.size("nowhere/at/all")


def test_deleting_is_for_good_and_may_be_repeated(store: Storage) -> None:
    store.put("files/one", b"1")
    store.put("files/two", b"2")

    for _ in range(2):
        store.delete("files/one")

    with pytest.raises(NotFound):
        read(store, "files/one")
    assert store.list("files") == ["files/two"]


def test_a_folder_is_deleted_with_all_that_is_in_it(store: Storage) -> None:
    for path in ("jobs/1/segments/a", "jobs/1/b", "jobs/10/c"):
        store.put(path, b"x")

    for _ in range(2):
        store.delete("jobs/1")

    assert store.list("jobs") == ["jobs/10/c"]


def test_deleted_folder_accepts_new_objects(store: Storage) -> None:
    store.put("jobs/1/a", b"x")
    store.delete("jobs/1")

    store.put("jobs/1/a", b"y")

    assert read(store, "jobs/1/a") == b"y"


def test_many_threads_write_and_read_at_once(store: Storage) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for at in range(5):
                store.put(f"jobs/{number}/{at}", bytes([number]) * 1000)
                assert read(store, f"jobs/{number}/{at}") == bytes([number]) * 1000
        except BaseException as failure:  # noqa: BLE001 (a thread's failure is the test's)
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert len(store.list("jobs")) == 30


# ── what a folder alone can do ──


@pytest.fixture
def disk(tmp_path: Path) -> DiskStorage:
    return DiskStorage(tmp_path / "files")


def test_a_folder_says_how_much_is_free(disk: DiskStorage) -> None:
    assert (disk.free() or 0) > MB


def test_a_file_system_without_free_inodes_is_full_and_says_so(
    disk: DiskStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test can count on a mount: what the kernel says and does is put in its place."""
    disk.put("files/a", b"x")
    real = os.statvfs

    def spent(path: Any) -> os.statvfs_result:
        values = list(real(path))
        values[5:8] = [1000, 0, 0]  # f_files, f_ffree, f_favail
        return os.statvfs_result(values)

    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(os, "statvfs", spent)
    with pytest.raises(StorageFull, match="no free inodes"):
        disk.free()
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageFull, match="no free inodes"):
        disk.put("files/b", b"x")
    monkeypatch.setattr(os, "statvfs", real)
    with pytest.raises(StorageFull, match="not enough free space"):
        disk.put("files/b", b"x")


def test_a_bucket_does_not_say_how_much_is_free(s3: S3) -> None:
    assert ObjectStorage(f"s3://{s3.bucket}", **s3.options).free() is None


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside", "files/../../outside"])
def test_no_path_leads_out_of_the_folder(disk: DiskStorage, path: str) -> None:
    with pytest.raises(ValueError, match=path):
        disk.size(path)


def test_full_disk_raises_storage_full_and_leaves_no_file(disk: DiskStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(StorageFull):
        disk.put("files/one", b"x")
    assert [path for path in disk.root.rglob("*") if path.is_file()] == []


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Return what is logged about a storage that is unavailable."""
    found: list[dict[str, object]] = []
    monkeypatch.setattr("jobs.platform.storage._unavailable.warn", lambda **fields: found.append(fields))
    return found


def test_other_disk_errors_raise_storage_unavailable(
    disk: DiskStorage, monkeypatch: pytest.MonkeyPatch, told: list[dict[str, object]]
) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)

    with pytest.raises(StorageUnavailable) as raised:
        disk.put("files/one", b"x")
    assert str(raised.value) == "The file storage cannot be reached.", "clients are shown it"
    assert told == [{"path": "files/one", "reason": "[Errno 5] Input/output error"}]


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the files and folders that are synced from now on."""
    found: list[str] = []
    real = os.fsync

    def note(descriptor: int) -> None:
        found.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    return found


def test_an_object_and_its_folders_are_synced_before_it_is_seen(disk: DiskStorage, synced: list[str]) -> None:
    disk.put("jobs/1/a", b"x")

    root = str(disk.root)
    assert synced[:3] == [str(disk.root.parent), root, f"{root}/jobs"]
    assert ".partial-" in synced[3]
    assert synced[4:] == [f"{root}/jobs/1"]


def test_asking_for_free_space_creates_a_durable_folder(disk: DiskStorage, synced: list[str]) -> None:
    disk.free()

    assert synced == [str(disk.root.parent)]


def test_half_written_files_of_a_crash_are_not_listed(disk: DiskStorage) -> None:
    disk.put("files/whole", b"x")
    (disk.root / "files" / ".partial-0123").write_bytes(b"ha")

    assert disk.list("files") == ["files/whole"]


def test_sweep_removes_only_stale_partial_files(disk: DiskStorage) -> None:
    disk.put("files/whole", b"x")
    for name in ("files/.partial-old", "files/.partial-new", "uploads/1/.partial-old"):
        path = disk.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"ha")
        os.utime(path, (1000, 1000 if name.endswith("old") else 3000))
    os.utime(disk.root / "files" / "whole", (1000, 1000))

    assert sum(disk.sweep("files", 2000)) + sum(disk.sweep("uploads", 2000)) == 2
    left = sorted(path.name for path in disk.root.rglob("*") if path.is_file())
    assert left == [".partial-new", "whole"]


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ENOTEMPTY])
def test_failed_folder_removal_raises_storage_unavailable(
    disk: DiskStorage, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    disk.put("jobs/1/a", b"x")

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", fail)
        with pytest.raises(StorageUnavailable):
            disk.delete("jobs/1")
    disk.delete("jobs/1")

    assert list(disk.folders("jobs")) == []


def test_two_may_remove_a_folder_at_once(disk: DiskStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b/c"):
        disk.put(f"jobs/1/{name}", b"x")
    rmdir, unlink = os.rmdir, os.unlink

    def late(remove: Any) -> Any:
        def twice(path: Any, **at: Any) -> None:
            remove(path, **at)
            remove(path, **at)  # as the other did first

        return twice

    monkeypatch.setattr(os, "rmdir", late(rmdir))
    monkeypatch.setattr(os, "unlink", late(unlink))
    disk.delete("jobs/1")

    assert list(disk.folders("jobs")) == []


def test_a_folder_that_goes_while_another_lists_hides_nothing_else(
    disk: DiskStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("uploads/1/a", "uploads/2/b", "uploads/3/c"):
        disk.put(name, b"x")
    scandir = os.scandir

    def late(path: Any) -> Any:
        if str(path).endswith("uploads/2"):
            disk.delete("uploads/2")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", late)

    assert disk.list("uploads") == ["uploads/1/a", "uploads/3/c"]


def test_a_folder_that_cannot_be_read_is_not_passed_over(disk: DiskStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.put("uploads/1/a", b"x")
    scandir = os.scandir

    def fail(path: Any) -> Any:
        if str(path).endswith("uploads/1"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)

    with pytest.raises(StorageUnavailable):
        disk.list("uploads")


def test_invalid_name_is_not_listed(disk: DiskStorage) -> None:
    """List no name that could not be removed: the search for objects without a row would find it."""
    disk.put("jobs/1/a", b"x")
    for path in ("jobs/1/report[1].txt", "jobs/old?/b"):
        (disk.root / path).parent.mkdir(exist_ok=True)
        (disk.root / path).write_bytes(b"x")

    assert disk.list("") == ["jobs/1/a"]
    assert list(disk.folders("jobs")) == ["1"]


# ── what S3 alone can do ──


def test_marks_of_folders_and_names_that_are_no_names_are_not_listed(s3: S3) -> None:
    """Tools that show a bucket as folders make an object for each, whose name ends in `/`."""
    store = ObjectStorage(f"s3://{s3.bucket}/marked", skip_instance_cache=True, **s3.options)
    store.put("jobs/1/a", b"x")
    for key in ("marked/", "marked/jobs/", "marked/jobs/1/", "marked/jobs/1/*"):
        store._fs.call_s3("put_object", Bucket=s3.bucket, Key=key, Body=b"")

    assert list(store.walk("jobs")) == ["jobs/1/a"]
    assert list(store.folders("jobs")) == ["1"]
    assert list(ObjectStorage(f"s3://{s3.bucket}", skip_instance_cache=True, **s3.options).walk("marked/jobs")) == [
        "marked/jobs/1/a"
    ]


def test_a_list_of_many_pages_is_whole(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStorage(f"s3://{s3.bucket}/many", skip_instance_cache=True, **s3.options)
    for n in range(5):
        store.put(f"jobs/{n}/a", b"x")
    asked, call = 0, store._fs.call_s3

    def in_twos(method: str, **where: Any) -> Any:
        nonlocal asked
        asked += 1
        return call(method, **where, MaxKeys=2)

    monkeypatch.setattr(store._fs, "call_s3", in_twos)

    assert (list(store.walk("jobs")), asked) == ([f"jobs/{n}/a" for n in range(5)], 3)
    assert list(store.folders("jobs")) == ["0", "1", "2", "3", "4"]


def test_a_url_says_which_storage_it_is(tmp_path: Path) -> None:
    assert isinstance(open_storage(f"file://{tmp_path}"), DiskStorage)
    assert isinstance(open_storage("s3://bucket/prefix"), ObjectStorage)


def test_an_s3_that_can_not_be_reached_is_an_error_and_not_a_missing_object(
    s3: S3, told: list[dict[str, object]]
) -> None:
    options = s3.options | {"client_kwargs": {"endpoint_url": "http://127.0.0.1:1", "region_name": "us-east-1"}}
    options["config_kwargs"] = {"retries": {"max_attempts": 0}}
    away = ObjectStorage(f"s3://{s3.bucket}", skip_instance_cache=True, **options)

    with pytest.raises(StorageUnavailable, match=r"^The file storage cannot be reached\.$"):
        away.size("x")
    assert "127.0.0.1:1" in str(told)


@pytest.mark.verify
def test_unreachable_object_store_is_unavailable_and_not_missing(s3: S3) -> None:
    """Ask a port on which nothing listens. A worker gives its shard back then, and no answered line is to blame."""
    options = {**s3.options, "client_kwargs": {**s3.options["client_kwargs"], "endpoint_url": "http://127.0.0.1:9"}}
    store = ObjectStorage(f"s3://{s3.bucket}/away", skip_instance_cache=True, **options)

    with pytest.raises(StorageUnavailable):
        store.put("a", b"x")
    with pytest.raises(StorageUnavailable):
        store.size("a")
    with pytest.raises(StorageUnavailable):
        store.list("a")


def test_unwritable_disk_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "files").write_text("a file where the folder should be")

    with pytest.raises(StorageUnavailable):
        open_storage(f"file://{tmp_path}/files").put("a/b", b"x")


def test_lines_are_read_up_to_a_length(store: Storage) -> None:
    """As the planner reads: a line that is too long is passed over without being held."""
    store.put("a", b"one\ntwo two two\nthree")

    with store.reader("a", 4) as handle:
        found = [handle.readline(5), handle.readline(5), handle.readline(5), handle.readline(9)]

    assert found == [b"two t", b"wo tw", b"o\n", b"three"]
