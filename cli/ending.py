"""How a job ended, in words, and its files."""

import sys
from pathlib import Path

from cli.server import Server
from cli.snapshot import Snapshot, doubts, fault
from cli.trouble import Trouble
from cli.wholefile import replaced

_SHOWN = 10


def tell(job: Snapshot) -> None:
    """Say on standard error what came of it."""
    thought = f", {job.reasoning_tokens} of them reasoning" if job.reasoning_tokens else ""
    tokens = f"{job.input_tokens} tokens in, {job.output_tokens} out{thought}"
    _say(f"{job.id} {job.state}: {job.completed} completed, {job.failed} failed of {job.total}; {tokens}")
    for doubt in doubts(job.outcomes):
        _say(f"  {doubt}")
    for error in job.errors[:_SHOWN]:
        _say(f"  {fault(error)}")
    if len(job.errors) > _SHOWN:
        _say(f"  and {len(job.errors) - _SHOWN} more errors")


def fetch(server: Server, job: Snapshot, answers: Path, errors: Path) -> None:
    """Download what the job has made. A job that was cut short has files too.

    Where it has none, one that an earlier job left there goes, lest it be taken for this one's.
    """
    for file_id, path, what in ((job.output_file_id, answers, "answers"), (job.error_file_id, errors, "errors")):
        if file_id:
            server.download(file_id, path)
            _say(f"{what}: {path}")
        elif path.is_file() and replaced(path):
            path.resolve().unlink()
            _say(f"{what}: none; removed what was in {path}")


def require_success(job: Snapshot) -> None:
    """Raises Trouble for a job that did not succeed, so that the exit code says so."""
    if job.state != "succeeded":
        raise Trouble(f"{job.id} {job.state}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
