"""A folder of the server: what is read of it, and that no name in it leads out."""

import itertools
import os
from pathlib import Path

import pytest

from jobs.errors import InvalidRequest
from jobs.retrieval import source_locations
from workers.retrieval.sources.base import ItemFailed, SourceEntry, SourceUnavailable, display_name
from workers.retrieval.sources.folder import FolderReader, matches


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "allowed/docs/deep").mkdir(parents=True)
    (tmp_path / "allowed/docs/a.md").write_text("a")
    (tmp_path / "allowed/docs/deep/b.txt").write_text("bb")
    return tmp_path / "allowed"


def place(root: Path, glob: str = "**/*", settled: float = 2.0) -> FolderReader:
    return FolderReader((str(root),), (root.parent / "data",), str(root / "docs"), glob, settled)


def listed(where: FolderReader) -> set[str]:
    return {entry.key for entry in where.entries(100, bool)}


def read(where: FolderReader, key: str) -> bytes:
    chunks: list[bytes] = []
    assert where.fetch(SourceEntry(key, "x"), None, chunks.append) is not None
    return b"".join(chunks)


def test_files_are_listed_at_any_depth_and_read(root: Path) -> None:
    assert listed(place(root)) == {"a.md", "deep/b.txt"}
    assert read(place(root), "deep/b.txt") == b"bb"


@pytest.mark.parametrize(
    ("glob", "wanted"),
    [
        ("**/*", {"a.md", "x/b.md", "x/y/c.txt"}),
        ("*.md", {"a.md"}),
        ("**/*.md", {"a.md", "x/b.md"}),
        ("x/**", {"x/b.md", "x/y/c.txt"}),
        ("x/*/c.*", {"x/y/c.txt"}),
        ("**/y/**/*.txt", {"x/y/c.txt"}),
        ("[ab].md", {"a.md"}),
        ("*", {"a.md"}),
        ("A.md", set()),
    ],
)
def test_glob_matches_like_shell_glob(glob: str, wanted: set[str]) -> None:
    names = ("a.md", "x/b.md", "x/y/c.txt")

    assert {name for name in names if matches(tuple(glob.split("/")), tuple(name.split("/")))} == wanted


def test_a_glob_of_many_stars_takes_no_longer() -> None:
    assert not matches(("**",) * 60 + ("*a*a*a*a*a*b",), ("a" * 200,) * 60)


def test_hidden_files_links_and_special_files_are_skipped(root: Path) -> None:
    docs = root / "docs"
    (docs / ".git").mkdir()
    (docs / ".git/config").write_text("x")
    (docs / ".env").write_text("x")
    (docs / "link.txt").symlink_to("../../secret.txt")
    (docs / "out").symlink_to("/etc")
    os.mkfifo(docs / "pipe.txt")

    assert listed(place(root)) == {"a.md", "deep/b.txt"}
    for key in ("link.txt", "out/passwd", "../../secret.txt", "pipe.txt"):
        with pytest.raises(ItemFailed):
            read(place(root), key)


def test_a_folder_that_becomes_a_link_after_it_was_listed_is_not_followed(root: Path, tmp_path: Path) -> None:
    where = place(root)
    assert "deep/b.txt" in listed(where)
    (tmp_path / "b.txt").write_text("secret")
    (root / "docs/deep").rename(tmp_path / "aside")
    (root / "docs/deep").symlink_to(tmp_path)

    with pytest.raises(ItemFailed):
        read(where, "deep/b.txt")
    assert listed(where) == {"a.md"}


def test_source_folder_replaced_by_symlink_is_unavailable(root: Path, tmp_path: Path) -> None:
    (root / "docs").rename(tmp_path / "aside")
    (root / "docs").symlink_to("/etc")

    with pytest.raises(SourceUnavailable):
        listed(place(root))
    with pytest.raises(ItemFailed):
        read(place(root), "passwd")


@pytest.mark.parametrize("roots", [(), ("/nowhere",)])
def test_source_that_is_no_longer_allowed_is_not_read(root: Path, roots: tuple[str, ...]) -> None:
    where = FolderReader(roots, (), str(root / "docs"), "**/*", 2.0)

    with pytest.raises(SourceUnavailable, match="does not allow"):
        listed(where)
    with pytest.raises(ItemFailed):
        read(where, "a.md")


def test_a_folder_is_allowed_where_it_really_lies(root: Path, tmp_path: Path) -> None:
    allowed = (str(root),)
    (root / "out").symlink_to(tmp_path)
    (root / "in").symlink_to(root / "docs")

    assert source_locations.folder(allowed, f"{root}/docs/../docs/deep", ()) == root / "docs/deep"
    assert source_locations.folder(allowed, f"{root}/in", ()) == root / "docs"
    assert source_locations.folder(allowed, f"{root}/to-come", ()) == root / "to-come"
    for path in (f"{root}/..", f"{root}/out", f"{root}x", "docs", "/", "/etc", f"{root}/../secret.txt", ""):
        with pytest.raises(InvalidRequest):
            source_locations.folder(allowed, path, ())


@pytest.mark.parametrize("own", ["", "docs", "docs/deep", "..", "to-deep"])
def test_a_folder_that_contains_the_servers_own_or_lies_in_it_is_not_read(root: Path, own: str) -> None:
    (root / "to-deep").symlink_to(root / "docs/deep")
    where = FolderReader((str(root),), (root / "elsewhere", root / own), str(root / "docs"), "**/*", 2.0)

    with pytest.raises(SourceUnavailable, match="does not allow") as away:
        listed(where)
    with pytest.raises(ItemFailed):
        read(where, "a.md")
    assert away.value.code == "folder_not_allowed"


def test_more_files_than_allowed_are_too_many(root: Path) -> None:
    with pytest.raises(SourceUnavailable, match="more than 1 items"):
        place(root).entries(1, bool)


def test_names_that_are_not_utf8_fail_each_alone(root: Path) -> None:
    for name in (b"\xfe", b"\xff"):
        Path(os.fsdecode(bytes(root / "docs") + b"/" + name + b".txt")).write_text("x")

    keys = {entry.key for entry in place(root).entries(10, bool) if entry.fault}

    assert keys == {"\\udcfe.txt", "\\udcff.txt"}


def test_a_fingerprint_tells_a_change_and_a_fresh_file_has_none(root: Path) -> None:
    [fresh] = [entry for entry in place(root).entries(9, bool) if entry.key == "a.md"]
    assert fresh.fingerprint is None
    there = place(root, settled=-1.0)
    [before] = [entry for entry in there.entries(9, bool) if entry.key == "a.md"]

    assert there.fetch(before, before.fingerprint, bytes) is None
    (root / "docs/a.md").write_text("b")
    os.utime(root / "docs/a.md", ns=(0, int(str((before.fingerprint or {})["mtime"]))))  # as if nothing had been

    [after] = [entry for entry in there.entries(9, bool) if entry.key == "a.md"]
    assert after.fingerprint != before.fingerprint


def test_errors_of_the_consumer_are_passed_on(root: Path) -> None:
    def full(_: bytes) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        place(root).fetch(SourceEntry("a.md", "a.md"), None, full)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/b/c.txt", "c.txt"),
        ("/", "document"),
        ("", "document"),
        ("a/..", "document"),
        ("x\n\u202e.pdf", "x.pdf"),
        ("noending", "noending"),
        ("y" * 300 + ".pdf", "y" * 200 + ".pdf"),
        (".hidden", ".hidden"),
        ("two words.md", "two words.md"),
    ],
)
def test_a_file_is_named_after_the_end_of_its_path(path: str, name: str) -> None:
    assert display_name(path) == name


def test_vanished_subfolder_is_skipped_and_vanished_root_is_unavailable(root: Path) -> None:
    top = os.open(root / "docs", os.O_RDONLY | os.O_DIRECTORY)

    gone: list[tuple[str, ...]] = []

    assert [name for name, _, _ in place(root, "**")._scan(top, ("deep",), gone)] == ["b.txt"]
    assert gone == []
    for name in ("none", "a.md"):
        assert list(place(root, "**")._scan(top, (name,), gone)) == []
    assert gone == [("none",), ("a.md",)]
    os.close(top)
    with pytest.raises(SourceUnavailable):
        list(place(root, "**")._scan(top, (), gone))


@pytest.mark.parametrize("moves", [1, 9])
def test_a_folder_that_moves_while_it_is_listed_is_found_where_it_went(root: Path, moves: int) -> None:
    """And what moves on and on is looked for so many times, and no more."""
    looks = itertools.count(1)

    def look() -> None:
        if (n := next(looks)) % 2 == 0 and n <= 2 * moves:  # between the folder and the one in it
            [deep] = (path for path in (root / "docs").iterdir() if path.is_dir())
            deep.rename(root / f"docs/moved{n}")

    found = {entry.key for entry in place(root).entries(100, look)}

    assert found == ({"a.md", "moved2/b.txt"} if moves == 1 else {"a.md"})
    assert next(looks) == (5 if moves == 1 else 7)
