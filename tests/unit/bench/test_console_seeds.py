"""The data of the console's benchmark: as much as is asked for, with the few rows that filters look for."""

from sqlalchemy import func, select

from bench import console
from jobs.db.engine import Database
from jobs.files.tables import File
from jobs.ids import new_id
from jobs.ledger.tables import Job, Segment
from jobs.retrieval.tables import VectorStore, VectorStoreFile


def count(db: Database, *conditions: object) -> int:
    with db.read() as session:
        return session.scalar(select(func.count()).where(*conditions)) or 0  # type: ignore[arg-type]


def test_rows_are_copied_with_some_rare_ones(sqlite: Database) -> None:
    common = {"project_id": "p", "created_at": 1e9}
    job_id = new_id("batch")
    with sqlite.write() as session:
        session.add(Job(id=job_id, kind="generation", state="succeeded", model="m", payload={}, **common))
        session.add(File(id="file-1", purpose="batch", filename="f", bytes=1, path="files/file-1", **common))
        session.add(VectorStore(id="vs_1", name="s", model="m", chunking={}, active_at=1e9, **common))
        session.add(
            Segment(job_id=job_id, n=0, epoch=1, seq=0, path="s", length=1, covered=b"", good=b"", created_at=1e9)
        )

    console._seed_jobs(sqlite, 40)
    console._seed_segments(sqlite, 60)
    console._seed_files(sqlite, 50)
    console._seed_documents(sqlite, "vs_1", 200)

    assert (count(sqlite, Job.id != ""), count(sqlite, Job.model == "rare-model")) == (40, 10)
    day_before = Segment.created_at >= 1e9 - 86_400
    assert (count(sqlite, Segment.n >= 0), count(sqlite, day_before)) == (61, 4), "two a day, and the copied one"
    assert (count(sqlite, File.id != ""), count(sqlite, File.purpose == "evals")) == (51, 10)
    documents = VectorStoreFile.store_id == "vs_1"
    assert (count(sqlite, documents), count(sqlite, documents, VectorStoreFile.status == "failed")) == (200, 2)
