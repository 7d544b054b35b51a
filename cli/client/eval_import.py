"""Take over evals and runs that were made elsewhere: from files that the SDK's objects were saved to, or from a server.

    files: evals, runs, output items ──┐
    a server that speaks the API ──────┴─▶ eval ─▶ each completed run ─▶ its output items, a file ─▶ one run here

Objects are known by their ids elsewhere, so that reading them again adds nothing.
"""

import json
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from cli.client.server import Server
from cli.errors import CliError
from cli.terminal import visible

#: Bytes of a file that is not JSON Lines: it is read as a whole.
MAX_WHOLE_BYTES: Final = 64 << 20
MAX_LINE_BYTES: Final = 16 << 20
#: Evals and runs of one import, and output items of one run.
MAX_OBJECTS: Final = 10_000
MAX_ITEMS: Final = 1_000_000
_SHOWN_BYTES: Final = 16_384
_PAGE: Final = 100
_LIVE: Final = ("queued", "in_progress")

Object = dict[str, Any]


class Origin(Protocol):
    """A source of evals and runs: saved files, or another server."""

    def evals(self) -> Iterator[Object]: ...

    def runs(self, eval_id: str) -> Iterator[Object]: ...

    def items(self, run: Object) -> Iterator[Object]: ...


@dataclass(frozen=True, slots=True)
class ImportResult:
    """The result of importing a run: its id elsewhere, the run here or None, and a word."""

    origin: str
    run: Object | None
    word: str


def import_all(server: Server, origin: Origin) -> Iterator[ImportResult]:
    """Import every completed run that the server does not have. Raises CliError for what it refuses."""
    for saved in origin.evals():
        eval_id = _text(server.post("/evals/imports", eval_body(saved)), "id")
        present = {run.get("imported_from"): run for run in pages(server, f"/evals/{eval_id}/runs")}
        for run in origin.runs(_text(saved, "id")):
            yield _import_run(server, origin, eval_id, run, present.get(_text(run, "id")))


def _import_run(server: Server, origin: Origin, eval_id: str, run: Object, present: Object | None) -> ImportResult:
    run_id = _text(run, "id")
    if run.get("status") != "completed":
        return ImportResult(run_id, None, f"left out: its status is {run.get('status')}")
    if present is not None and present["status"] in (*_LIVE, "completed"):
        return ImportResult(run_id, present, "is there already")
    if present is not None:  # an import that failed, or was cancelled
        server.delete(f"/evals/{eval_id}/runs/{_text(present, 'id')}")
    with _items_file(origin.items(run)) as path:
        if path is None:
            return ImportResult(run_id, None, "left out: it has no output items")
        file_id = server.upload(path, "evals")
    made = server.post(f"/evals/{eval_id}/imports", run_body(run, file_id))
    done = _await_end(server, eval_id, _text(made, "id"))
    server.delete(f"/files/{file_id}")  # the run has the items
    if done["status"] != "completed":
        server.delete(f"/evals/{eval_id}/runs/{done['id']}")
        why = (done.get("error") or {}).get("message") or done["status"]
        raise CliError(f"{run_id} was not imported: {why}")
    return ImportResult(run_id, done, "imported")


@contextmanager
def _items_file(items: Iterator[Object]) -> Iterator[Path | None]:
    """Yield a file with an item on each line; None for no items."""
    with tempfile.TemporaryDirectory(prefix="nightmill-") as folder:
        path, count = Path(folder) / "output_items.jsonl", 0
        with path.open("w", encoding="utf-8") as out:
            for item in items:
                out.write(json.dumps(item) + "\n")
                count += 1
        yield path if count else None


def _await_end(server: Server, eval_id: str, run_id: str) -> Object:
    while (run := server.get(f"/evals/{eval_id}/runs/{run_id}"))["status"] in _LIVE:
        threading.Event().wait(server.timings.follow_look)
    return run


# ── bodies ──


def eval_body(saved: Object) -> Object:
    """Return the request that takes over an eval. Raises CliError for what is not an eval."""
    config, criteria = saved.get("data_source_config"), saved.get("testing_criteria")
    if not isinstance(config, dict) or not isinstance(criteria, list):
        raise CliError(f"{_text(saved, 'id')} is not an eval: it has no data_source_config or no testing_criteria")
    body = {
        "imported_from": _text(saved, "id"),
        "name": saved.get("name") or "Untitled",
        "data_source_config": _config(config),
        "testing_criteria": [_without_nulls(criterion) for criterion in criteria],
    }
    return body | ({"metadata": saved["metadata"]} if saved.get("metadata") else {})


def _config(shown: Object) -> Object:
    """Return the config that was sent, from the one that is shown."""
    if shown.get("type") != "custom":
        return {name: shown[name] for name in ("type", "metadata") if shown.get(name)}
    schema = shown.get("schema", shown.get("schema_"))  # `model_dump()` of the SDK has its own name of the field
    properties = schema.get("properties") if isinstance(schema, dict) else None
    properties = properties if isinstance(properties, dict) else {}
    item = properties.get("item", {"type": "object"})
    return {"type": "custom", "item_schema": item, "include_sample_schema": "sample" in properties}


def _without_nulls(value: Any) -> Any:
    """Return a grader without the fields that are null: saved objects have all fields of their type."""
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def run_body(saved: Object, file_id: str) -> Object:
    """Return the request that takes over a run."""
    source = saved.get("data_source")
    source = dict(source) if isinstance(source, dict) else {"type": "jsonl"}
    inner = source.get("source")
    if isinstance(inner, dict) and len(json.dumps(inner)) > _SHOWN_BYTES:
        source["source"] = {**inner, "content": []}
    body = {"imported_from": _text(saved, "id"), "file_id": file_id, "data_source": source}
    return body | {name: saved[name] for name in ("name", "model", "metadata") if saved.get(name)}


# ── where they come from ──


def pages(
    server: Server, path: str, query: Mapping[str, Any] | None = None, limit: int = MAX_OBJECTS
) -> Iterator[Object]:
    """Yield the entries of a list, page by page. Raises CliError for a list that never ends."""
    asked: Object = {**(query or {}), "limit": _PAGE}
    count = 0
    while True:
        page = server.get(path, asked)
        entries = page.get("data")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise CliError(f"what {server.url} answers at {path} is not a list")
        yield from entries
        count += len(entries)
        if not page.get("has_more") or not entries:
            return
        if count >= limit or entries[-1].get("id") == asked.get("after"):
            raise CliError(f"the list at {path} of {server.url} is longer than {limit} entries")
        asked["after"] = entries[-1].get("id")


@dataclass(frozen=True, slots=True)
class ServerOrigin:
    """A server that speaks the API: some of its evals, or all."""

    server: Server
    chosen: tuple[str, ...] = ()

    def evals(self) -> Iterator[Object]:
        if not self.chosen:
            return pages(self.server, "/evals")
        return (self.server.get(f"/evals/{eval_id}") for eval_id in self.chosen)

    def runs(self, eval_id: str) -> Iterator[Object]:
        return pages(self.server, f"/evals/{eval_id}/runs")

    def items(self, run: Object) -> Iterator[Object]:
        path = f"/evals/{_text(run, 'eval_id')}/runs/{_text(run, 'id')}/output_items"
        return pages(self.server, path, limit=MAX_ITEMS)


@dataclass(slots=True)
class FileOrigin:
    """Saved objects. Output items lie in `folder`, a file for each run, so that memory holds one of them."""

    folder: Path
    _evals: dict[str, Object] = field(default_factory=dict)
    _runs: dict[str, dict[str, Object]] = field(default_factory=lambda: defaultdict(dict))
    _items: dict[str, Path] = field(default_factory=dict)

    def read(self, path: Path) -> None:
        """Read the objects of a file. Raises CliError."""
        for value in _objects(path):
            self._add(path, value)

    def check(self) -> None:
        """Check that there is something to import, and that the eval of each run is there. Raises CliError."""
        if not self._evals:
            raise CliError("the files have no eval: save the object of `client.evals.retrieve` too")
        for eval_id, runs in self._runs.items():
            if eval_id not in self._evals:
                raise CliError(f"the files have the run {min(runs)}, but not its eval {eval_id}")
        orphans = self._items.keys() - {run_id for runs in self._runs.values() for run_id in runs}
        if orphans:
            raise CliError(f"the files have output items of {min(orphans)}, but not the run")

    def evals(self) -> Iterator[Object]:
        return iter(self._evals.values())

    def runs(self, eval_id: str) -> Iterator[Object]:
        return iter(self._runs[eval_id].values())

    def items(self, run: Object) -> Iterator[Object]:
        path = self._items.get(_text(run, "id"))
        if path is not None:
            with path.open(encoding="utf-8") as lines:
                yield from map(json.loads, lines)

    def _add(self, path: Path, value: Any) -> None:
        kind = value.get("object") if isinstance(value, dict) else None
        add = self._readers.get(kind) if isinstance(kind, str) else None
        if kind is None and isinstance(value, dict) and isinstance(value.get("data"), list):
            kind = "list"  # the SDK's pages have no other mark
        if kind == "list":
            for entry in value.get("data") or ():
                self._add(path, entry)
        elif add is None:
            raise CliError(f"{path}: it has something else than evals, runs and output items: {visible(str(kind))}")
        else:
            add(value)
            if len(self._evals) + sum(map(len, self._runs.values())) > MAX_OBJECTS:
                raise CliError(f"{path}: there are more than {MAX_OBJECTS} evals and runs")

    @property
    def _readers(self) -> Mapping[str, Callable[[Object], None]]:
        return {"eval": self._add_eval, "eval.run": self._add_run, "eval.run.output_item": self._add_item}

    def _add_eval(self, value: Object) -> None:
        self._evals[_text(value, "id")] = value

    def _add_run(self, value: Object) -> None:
        self._runs[_text(value, "eval_id")][_text(value, "id")] = value

    def _add_item(self, value: Object) -> None:
        run_id = _text(value, "run_id")
        path = self._items.setdefault(run_id, self.folder / f"{len(self._items)}.jsonl")
        with path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(value) + "\n")


def _objects(path: Path) -> Iterator[Any]:
    """Yield the values of a file of JSON Lines, or the value of a JSON file. Raises CliError."""
    if path.suffix != ".jsonl":
        if path.stat().st_size > MAX_WHOLE_BYTES:
            raise CliError(
                f"{path} has more than {MAX_WHOLE_BYTES} bytes: save an object on each line of a .jsonl file"
            )
        value = _parse_json(path, path.read_bytes(), 0)
        yield from value if isinstance(value, list) else (value,)
        return
    with path.open("rb") as lines:
        number = 0
        while raw := lines.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(raw) > MAX_LINE_BYTES:
                raise CliError(f"{path}: line {number} has more than {MAX_LINE_BYTES} bytes")
            if raw.strip():
                yield _parse_json(path, raw, number)


def _parse_json(path: Path, raw: bytes, number: int) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        where = f"line {number} of {path}" if number else str(path)
        raise CliError(f"{where} is not JSON: {error}") from None


def _text(value: Object, name: str) -> str:
    """Return a field that is an id. Raises CliError."""
    text = value.get(name)
    if not isinstance(text, str) or not text or "/" in text or len(text) > 255:
        raise CliError(f"an object has no '{name}', or one that is not an id: {visible(str(text))[:80]}")
    return text
