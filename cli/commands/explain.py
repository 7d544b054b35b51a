"""`nightmill explain JOB`: why it waits, why it failed, and what became of its lines, with examples."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cli.client.progress import Snapshot
from cli.errors import CliError
from cli.options import JobId, ServerOptions
from cli.wording import name_kind


def explain(options: ServerOptions, job: JobId) -> None:
    """Explain why a job waits or failed, and count its requests by outcome, with examples.

    The log of a model that is quarantined is shown where the database of the deployment can be reached.
    """
    shown = options.server.get(f"/jobs/{job}")
    explained = options.server.get(f"/jobs/{job}/explain")
    snapshot = Snapshot.of(shown)
    lines = [*_standing(snapshot), *(f"  {line}" for line in explained["text"].split("\n") if line)]
    lines += _describe_quarantine(snapshot, options.data_dir)
    result = {"job": shown, "explanation": [line.strip() for line in lines], "reasons": explained["reasons"]}
    options.show(result, *lines)


def _standing(job: Snapshot) -> Iterator[str]:
    what = f"{job.id} ({name_kind(job.kind)}, {job.model or 'no model yet'})"
    yield f"{what}: {job.standing}, {job.done} of {job.total or '?'} done"
    if job.pace:
        yield f"  it makes {job.pace}"


def _describe_quarantine(job: Snapshot, data_dir: Path | None) -> Iterator[str]:
    """Describe the quarantine of the job's model with its log, which only the database of the deployment has."""
    if job.waiting_for != "waiting for model":
        return
    from sqlalchemy.exc import SQLAlchemyError

    from cli.up.effective import opened, running
    from jobs.fleet import quarantine
    from jobs.fleet.models_file import ModelsFileError, Registry
    from jobs.ledger.tables import Job

    with suppress(CliError, ModelsFileError, SQLAlchemyError), opened(data_dir) as db, db.read() as session:
        if session.get(Job, job.id) is None:
            return
        aliases = Registry.load(running(data_dir)).aliases
        for row in quarantine.all_quarantines(session, aliases.get(job.model, job.model)):
            yield from (f"  {line}" for line in quarantine.describe(row))
            yield f"  to fix it: correct what its log says, then `nightmill resume model {row.model}`"
