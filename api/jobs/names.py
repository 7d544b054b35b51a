"""The names by which people tell jobs apart."""

from collections.abc import Sequence

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from api.deps import CallContext
from api.files.queries import visible
from jobs.evals.tables import EvalRun
from jobs.files.tables import File
from jobs.ledger.tables import Job
from jobs.retrieval.tables import VectorStore


def names_of(session: Session, call: CallContext, jobs: Sequence[Job]) -> dict[str, str]:
    """Return the names of jobs by their ids, without those that have none.

    The first of these is the name: the entry `name` of the metadata, the suffix of a fine-tuning job, the name of a
    pipeline or a step, of an eval run, of a vector store, of the input file.
    """
    stores = {job.payload.get("store_id") for job in jobs}
    runs = _names(session, select(EvalRun.id, EvalRun.name).where(EvalRun.id.in_([job.id for job in jobs])))
    store_names = _names(session, select(VectorStore.id, VectorStore.name).where(VectorStore.id.in_(stores - {None})))
    files = visible(call).where(File.id.in_({job.input_file_id for job in jobs} - {None}))
    file_names = _names(session, files.with_only_columns(File.id, File.filename))
    names = {
        job.id: (job.metadata_ or {}).get("name")
        or job.payload.get("suffix")
        or job.payload.get("name")
        or runs.get(job.id)
        or store_names.get(job.payload.get("store_id", ""))
        or file_names.get(job.input_file_id or "")
        for job in jobs
    }
    return {job_id: name for job_id, name in names.items() if name}


def _names(session: Session, statement: Select[str, str]) -> dict[str, str]:
    return dict(session.execute(statement).all())
