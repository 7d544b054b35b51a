"""Make objects on this server as a plan says, in an order in which a kill between any two requests loses nothing.

Each object is found again by its id elsewhere, so that applying a plan once more only adds what is missing.
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import quote

from cli.client.server import ObjectNotFound, Server, ServerUnavailable
from cli.errors import CliError
from cli.migrate.outcomes import MigrationKind, MigrationOutcome, Report, ReportRow
from cli.migrate.plan import ORIGIN, MigrationStep, ModelNames, PlannedRequest, lines_file, plan
from cli.migrate.server import entries
from cli.migrate.source import MAX_ITEMS, MigrationSource, Object

_LIVE: Final = ("queued", "in_progress")


@dataclass(slots=True)
class MigrationTarget:
    """The server that objects are made on."""

    server: Server
    _files: dict[str, str] | None = None
    _stores: dict[str, str] | None = None

    def get(self, path: str) -> Object | None:
        """Return an object, None where there is none."""
        try:
            return self.server.get(path)
        except ObjectNotFound:
            return None

    @property
    def files(self) -> dict[str, str]:
        """Return the ids of the project's files by their names, asked for once."""
        if self._files is None:
            self._files = {file["filename"]: file["id"] for file in entries(self.server, "/files", limit=MAX_ITEMS)}
        return self._files

    @property
    def stores(self) -> dict[str, str]:
        """Return the ids of the project's vector stores by their ids elsewhere, asked for once."""
        if self._stores is None:
            rows = ((row, (row.get("metadata") or {}).get(ORIGIN)) for row in entries(self.server, "/vector_stores"))
            self._stores = {origin_id: row["id"] for row, origin_id in rows if origin_id}
        return self._stores

    @property
    def origins(self) -> dict[str, str]:
        """Return the ids of the project's files by their ids elsewhere, which begin their names."""
        return {name.partition(".")[0]: file_id for name, file_id in self.files.items()}

    def upload(self, step: MigrationStep) -> str:
        """Upload the content of a step; return the file's id."""
        assert step.content is not None
        name, purpose = step.file
        with step.content() as path:
            self.files[name] = self.server.upload(path, purpose, name)  # type: ignore[arg-type]
        return self.files[name]

    def remove(self, name: str) -> None:
        """Remove the file of a name, if there is one."""
        if file_id := self.files.pop(name, None):
            with suppress(ObjectNotFound):
                self.server.delete(f"/files/{file_id}")


@dataclass(frozen=True, slots=True)
class Writer:
    """The way to make objects of a kind: `find` returns the id of a whole one, `send` makes one and returns its id."""

    find: Callable[[MigrationTarget, MigrationStep], str | None]
    send: Callable[[MigrationTarget, MigrationStep], str]


def migrate(
    source: MigrationSource,
    server: Server,
    names: Mapping[str, str],
    *,
    applied: bool,
    train: bool = False,
    show: Callable[[int, int], None] = lambda _done, _total: None,
) -> Iterator[ReportRow]:
    """Yield the outcome of each object of a source; with `applied` make what comes over.

    `show` is called before each object with the number of those that are done, and of all.

    Raises:
        ServerUnavailable: the server does not answer. Migrating once more goes on.
    """
    served = frozenset(model["id"] for model in server.get("/models")["data"])
    target = MigrationTarget(server)
    steps = list(plan(source, ModelNames(names, served, train)))
    for number, step in enumerate(steps):
        show(number, len(steps))
        if step.row.outcome == MigrationOutcome.LOST:
            yield step.row
            continue
        writer = WRITERS[step.row.kind]
        try:
            if present := writer.find(target, step):
                yield replace(step.row, id=present, outcome=MigrationOutcome.PRESENT, reason="")
            else:
                yield replace(step.row, id=writer.send(target, step)) if applied and step.is_sent else step.row
        except ServerUnavailable:
            raise
        except CliError as error:
            yield replace(step.row, outcome=MigrationOutcome.FAILED, reason=str(error))


def store_report(server: Server, report: Report) -> str:
    """Store a report as a file of the project; return the file's id."""
    with lines_file(lambda: iter([report.to_json()])) as path:
        return server.upload(path, "user_data", f"{report.name}.json")


# ── how each kind is made ──


def _find_file(target: MigrationTarget, step: MigrationStep) -> str | None:
    return target.files.get(step.file[0])


def _find_prompt(target: MigrationTarget, step: MigrationStep) -> str | None:
    return step.row.origin_id if not list(_missing(target, step)) else None


def _missing(target: MigrationTarget, step: MigrationStep) -> Iterator[PlannedRequest]:
    """Yield the requests of the versions that are missing, and the last one unless a version is in production."""
    path = f"/prompts/{step.row.origin_id}"
    prompt = target.get(path)
    versions = {row["version"] for row in entries(target.server, f"{path}/versions")} if prompt else set()
    first, *contents, last = step.requests
    if prompt is None:
        versions.add(first.body["version"])
        yield first
    yield from (request for request in contents if request.body["version"] not in versions)
    labels = prompt["labels"] if prompt else {}
    if not last.body["labels"].keys() <= labels.keys():
        yield PlannedRequest(last.path, last.body | {"labels": last.body["labels"] | labels})


def _send_prompt(target: MigrationTarget, step: MigrationStep) -> str:
    for request in list(_missing(target, step)):
        target.server.post(request.path, request.body)
    return step.row.origin_id


def _find_eval(target: MigrationTarget, step: MigrationStep) -> str | None:
    row = target.get(f"/evals/{step.row.origin_id}")
    return row["id"] if row else None


def _send_request(target: MigrationTarget, step: MigrationStep) -> str:
    (request,) = step.requests
    return str(target.server.post(request.path, request.body)["id"])


def _run_path(step: MigrationStep) -> str:
    return f"/evals/{step.parent_id}/runs/{step.row.origin_id}"


def _find_run(target: MigrationTarget, step: MigrationStep) -> str | None:
    """Return the id of a completed run whose file of output items is removed."""
    run = target.get(_run_path(step))
    return run["id"] if run and run["status"] == "completed" and step.file[0] not in target.files else None


def _send_run(target: MigrationTarget, step: MigrationStep) -> str:
    """Import a run from a file of its output items, and remove the file. Go on with an import that was begun."""
    run = target.get(_run_path(step))
    if run is None or run["status"] not in (*_LIVE, "completed"):
        if run is not None:  # an import that failed, or was cancelled
            target.server.delete(_run_path(step))
        target.remove(step.file[0])
        (request,) = step.requests
        run = target.server.post(request.path, request.body | {"file_id": target.upload(step)})
    while run["status"] in _LIVE:
        threading.Event().wait(target.server.timings.follow_look)
        run = target.server.get(_run_path(step))
    target.remove(step.file[0])
    if run["status"] != "completed":
        target.server.delete(_run_path(step))
        raise CliError((run.get("error") or {}).get("message") or run["status"])
    return str(run["id"])


def _missing_files(target: MigrationTarget, step: MigrationStep) -> Iterator[list[Object]]:
    """Yield batches of the files that a store here has not yet, with their ids here, as far as they are here."""
    origins, store_id = target.origins, target.stores[step.row.origin_id]
    present = {file["id"] for file in entries(target.server, f"/vector_stores/{store_id}/files")}
    for request in step.requests[1:]:
        files = [file | {"file_id": origins.get(file["file_id"])} for file in request.body["files"]]
        if missing := [file for file in files if file["file_id"] and file["file_id"] not in present]:
            yield missing


def _find_store(target: MigrationTarget, step: MigrationStep) -> str | None:
    store_id = target.stores.get(step.row.origin_id)
    return store_id if store_id and not next(_missing_files(target, step), None) else None


def _send_store(target: MigrationTarget, step: MigrationStep) -> str:
    if step.row.origin_id not in target.stores:
        head = step.requests[0]
        target.stores[step.row.origin_id] = target.server.post(head.path, head.body)["id"]
    store_id = target.stores[step.row.origin_id]
    for files in list(_missing_files(target, step)):
        target.server.post(f"/vector_stores/{store_id}/file_batches", {"files": files})
    return store_id


def _find_job(target: MigrationTarget, step: MigrationStep) -> str | None:
    query = {f"metadata[{ORIGIN}]": step.row.origin_id}
    job = next(entries(target.server, "/fine_tuning/jobs", query), None)
    return job["id"] if job else None


def _send_job(target: MigrationTarget, step: MigrationStep) -> str:
    (request,) = step.requests
    origins, body = target.origins, dict(request.body)
    for field in body.keys() & {"training_file", "validation_file"}:
        if body[field] not in origins:
            raise CliError(f"its {field} {body[field]} is not here")
        body[field] = origins[body[field]]
    return str(target.server.post(request.path, body)["id"])


def _find_chat(target: MigrationTarget, step: MigrationStep) -> str | None:
    chat = target.get(f"/chat/completions/{step.row.origin_id}")
    return chat["id"] if chat else None


def _send_chat(target: MigrationTarget, step: MigrationStep) -> str:
    assert step.content is not None
    with step.content() as path:
        body = json.loads(path.read_bytes())
    return str(target.server.post("/chat/completions/imports", body)["id"])


def _find_alias(target: MigrationTarget, step: MigrationStep) -> str | None:
    (request,) = step.requests
    alias = target.get(f"/aliases/{quote(step.row.origin_id, safe='')}")
    return step.row.origin_id if alias and alias["model"] == request.body["model"] else None


WRITERS: Final[Mapping[MigrationKind, Writer]] = {
    MigrationKind.FILE: Writer(_find_file, MigrationTarget.upload),
    MigrationKind.PROMPT: Writer(_find_prompt, _send_prompt),
    MigrationKind.EVAL: Writer(_find_eval, _send_request),
    MigrationKind.EVAL_RUN: Writer(_find_run, _send_run),
    MigrationKind.VECTOR_STORE: Writer(_find_store, _send_store),
    MigrationKind.FINE_TUNING_JOB: Writer(_find_job, _send_job),
    MigrationKind.CHAT_COMPLETION: Writer(_find_chat, _send_chat),
    MigrationKind.ALIAS: Writer(_find_alias, _send_request),
}
