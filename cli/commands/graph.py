"""`nightmill graph JOB`: the jobs that a job waits for and those that wait for it, each as an indented tree."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cli.options import JobId, ServerOptions
from cli.wording import name_kind


def graph(options: ServerOptions, job: JobId) -> None:
    """Draw the jobs that a job waits for and the jobs that wait for it, with the state of each."""
    shown = options.server.get(f"/jobs/{job}/graph")
    options.show(shown, *draw_graph(shown))


def draw_graph(shown: Mapping[str, Any]) -> Iterator[str]:
    """Return the lines of a drawing of what `GET /v1/jobs/{id}/graph` returns."""
    jobs = {job["id"]: job for job in shown["jobs"]}
    after: dict[str, list[str]] = {job_id: job["after"] for job_id, job in jobs.items()}
    before: dict[str, list[str]] = {job_id: [] for job_id in jobs}
    for job_id, predecessors in after.items():
        for predecessor in predecessors:
            before[predecessor].append(job_id)
    root = shown["job_id"]
    yield _describe(jobs[root])
    for title, edges in (("waits for", after), ("is waited for by", before)):
        yield f"  {title}" if edges[root] else f"  {title}: no job"
        yield from _tree(root, jobs, edges)
    if shown["truncated"]:
        yield "  and more, which are not shown"


def _tree(root: str, jobs: Mapping[str, Any], edges: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Draw each job once, with its successors; where it is met again, draw it without them."""
    seen = set[str]()
    waiting = [(job_id, 2) for job_id in reversed(edges[root])]
    while waiting:
        job_id, depth = waiting.pop()
        again = job_id in seen and bool(edges[job_id])
        yield f"{'  ' * depth}{_describe(jobs[job_id])}{' (see above)' if again else ''}"
        if not again:
            waiting += [(next_id, depth + 1) for next_id in reversed(edges[job_id])]
        seen.add(job_id)


def _describe(job: Mapping[str, Any]) -> str:
    waits = f", {job['waiting_for'].replace('_', ' ')}" if job["waiting_for"] else ""
    return f"{job['id']} ({name_kind(job['kind'])}): {job['state']}{waits}"
