"""How a job ended, in words, and its files."""

from pathlib import Path

from cli.server import Server
from cli.snapshot import Snapshot, doubts, fault
from cli.terminal import say
from cli.trouble import Trouble
from cli.wholefile import replaced

_SHOWN = 10


def tell(job: Snapshot) -> None:
    """Say on standard error what came of it."""
    thought = f", {job.reasoning_tokens} of them reasoning" if job.reasoning_tokens else ""
    tokens = f"{job.input_tokens} tokens in, {job.output_tokens} out{thought}"
    say(f"{job.id} {job.state}: {job.completed} completed, {job.failed} failed of {job.total}; {tokens}", err=True)
    for doubt in doubts(job.outcomes):
        say(f"  {doubt}", err=True)
    for error in job.errors[:_SHOWN]:
        say(f"  {fault(error)}", err=True)
    if len(job.errors) > _SHOWN:
        say(f"  and {len(job.errors) - _SHOWN} more errors", err=True)


def fetch(server: Server, job: Snapshot, answers: Path, errors: Path) -> None:
    """Download what the job has made. A job that was cut short has files too.

    Where it has none, one that an earlier job left there goes, lest it be taken for this one's.
    """
    for file_id, path, what in ((job.output_file_id, answers, "answers"), (job.error_file_id, errors, "errors")):
        if file_id:
            server.download(file_id, path)
            say(f"{what}: {path}", err=True)
        elif path.is_file() and replaced(path):
            path.resolve().unlink()
            say(f"{what}: none; removed what was in {path}", err=True)


def require_success(job: Snapshot) -> None:
    """Raises Trouble for a job that did not succeed, so that the exit code says so."""
    if job.state != "succeeded":
        raise Trouble(f"{job.id} {job.state}")
