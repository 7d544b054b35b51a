"""A source of a vector store in a deployment of one process, and what has become of it."""

from pathlib import Path
from typing import Any

from sqlalchemy import select

from jobs.files.tables import File
from jobs.retrieval import sources
from jobs.retrieval.tables import Source, SourceItem, VectorStore
from tests.support.ingestion import Works
from tests.support.orphan_files import look_twice
from workers.dispatcher.retention import Retention

TEXTS = {"a.txt": "apple " * 30, "b/plum.md": "# Plum\n\nplum " * 10, "b/c/pear.html": "<p>pear pear pear</p>"}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


class Sync:
    """Hold a source of a store."""

    def __init__(self, inline: Works, store: str, **body: Any) -> None:
        self.inline, self.store = inline, store
        self.path = f"/vector_stores/{store}/sources"
        self.id = str(inline.ok(self.path, json=body)["id"])

    def now(self) -> dict[str, Any]:
        return self.inline.get(f"{self.path}/{self.id}")

    def again(self) -> dict[str, Any]:
        self.inline.ok(f"{self.path}/{self.id}/sync")
        self.inline.drive()
        return self.now()

    def by_schedule(self) -> dict[str, Any]:
        """Sync the source because its time has come, without a client."""
        with self.inline.db.write() as session:
            source, store = session.get_one(Source, self.id), session.get_one(VectorStore, self.store)
            assert sources.sync(session, source, store, actor=f"source:{self.id}")
        self.inline.drive()
        return self.now()

    def counts(self) -> list[int]:
        """Seen, added, changed, removed, unchanged, failed."""
        found = self.now()["counts"]
        return [found[name] for name in ("seen", "added", "changed", "removed", "unchanged", "failed")]

    def items(self) -> dict[str, SourceItem]:
        with self.inline.db.read() as session:
            rows = session.scalars(select(SourceItem).where(SourceItem.source_id == self.id)).all()
        return {row.key: row for row in rows}

    def names(self, query: str) -> set[str]:
        """Files that have a word of the query in what was found of them."""
        found = self.inline.search(self.store, query, limit=50)
        return {one.filename for one in found if query in one.text}


def of_folder(inline: Works, library: Path, **body: Any) -> Sync:
    source = Sync(inline, inline.store(), type="folder", path=str(library), **body)
    inline.drive()
    return source


def alive(inline: Works) -> set[str]:
    """Files that somebody can see."""
    with inline.db.read() as session:
        return set(session.scalars(select(File.id).where(File.deleted_at.is_(None))))


def assert_mirrors(source: Sync, texts: dict[str, str]) -> None:
    """Check that each document is in the store once, in its newest version, and nothing else is anywhere."""
    inline, items = source.inline, source.items()
    assert {key: item.previous_id for key, item in items.items()} == dict.fromkeys(texts)
    files = {item.file_id for item in items.values()}
    assert files == {row.id for row in inline.rows(source.store)} == alive(inline)
    assert len(files) == len(texts)
    assert {row.status for row in inline.rows(source.store)} <= {"completed"}
    inline.purge()
    inline.assert_tidy(source.store)
    retention = Retention(inline.context.config, inline.db, inline.storage)
    look_twice(inline.context.config, inline.db, inline.storage)
    retention.run()
    assert set(inline.storage.list("files")) == {f"files/{name}" for name in files}
    with inline.db.read() as session:
        for key, item in items.items():
            assert inline.storage.size(f"files/{item.file_id}") == len(texts[key].encode())
            assert session.get_one(File, item.file_id).sha256 == item.sha256
