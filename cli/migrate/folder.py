"""Saved objects as a source: files that the SDK's objects were dumped to, and the folders of exporters.

*.json, *.jsonl     objects, lists and pages of them; {"eval", "rows", "runs"}; {"openai_prompt_id", "versions"}
file-*.*            the content of the file with this id
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

from cli.errors import CliError
from cli.migrate import promptfoo
from cli.migrate.outcomes import MigrationKind, MigrationOutcome, ReportRow
from cli.migrate.source import MAX_OBJECTS, Object, Opener, SourceFile, id_of
from cli.terminal import visible

#: Bytes of a file that is not JSON Lines: it is read as a whole.
MAX_WHOLE_BYTES: Final = 64 << 20
MAX_LINE_BYTES: Final = 16 << 20
_CONTENT: Final = re.compile(r"file-[A-Za-z0-9]+")
#: Objects that are kept as they are, by the names of their kinds.
_WHOLE: Final = ("eval", "file", "prompt", "vector_store", "fine_tuning.job", "chat.completion")
_OWN_REPORT: Final = "migration.report"


class FolderSource:
    """Objects that were saved in files. Items and rows lie in the folder `scratch`: memory holds none of them."""

    def __init__(self, paths: Sequence[Path], scratch: Path) -> None:
        self.name = ", ".join(map(str, paths))
        self._scratch = scratch
        self._objects: dict[str, dict[str, Object]] = defaultdict(dict)
        self._runs: dict[str, dict[str, Object]] = defaultdict(dict)
        self._attached: dict[str, dict[str, Object]] = defaultdict(dict)
        self._lines: dict[tuple[str, str], Path] = {}
        self._contents: dict[str, Path] = {}
        self._remarks: list[ReportRow] = []
        files = list(_walk(paths))
        of_promptfoo = self._read_promptfoo(files)
        for path in files:
            if path.resolve() not in of_promptfoo:
                self._read(path)

    # ── what a source gives ──

    def files(self) -> Iterator[SourceFile]:
        described = self._objects["file"]
        for file_id in [*described, *(self._contents.keys() - described.keys())]:
            path = self._contents.get(file_id)
            saved = described.get(file_id) or {"id": file_id, "filename": path and path.name, "purpose": "evals"}
            yield SourceFile(saved, None if path is None else _opener(path))

    def prompts(self) -> Iterator[Object]:
        return iter(self._objects["prompt"].values())

    def evals(self) -> Iterator[Object]:
        return iter(self._objects["eval"].values())

    def rows(self, eval_id: str) -> Iterator[Object]:
        return self._lines_of("row", eval_id)

    def runs(self, eval_id: str) -> Iterator[Object]:
        return iter(self._runs[eval_id].values())

    def items(self, run: Object) -> Iterator[Object]:
        return self._lines_of("item", id_of(run))

    def vector_stores(self) -> Iterator[Object]:
        return iter(self._objects["vector_store"].values())

    def store_files(self, store_id: str) -> Iterator[Object]:
        return iter(self._attached[store_id].values())

    def fine_tuning_jobs(self) -> Iterator[Object]:
        return iter(self._objects["fine_tuning.job"].values())

    def chat_completions(self) -> Iterator[Object]:
        return iter(self._objects["chat.completion"].values())

    def messages(self, completion_id: str) -> Iterator[Object]:
        return iter(self._objects["chat.completion"][completion_id].get("messages") or ())

    def remarks(self) -> Iterator[ReportRow]:
        yield from self._remarks
        for eval_id, runs in self._runs.items():
            if eval_id not in self._objects["eval"]:
                for run_id in runs:
                    yield _loss(MigrationKind.EVAL_RUN, run_id, f"its eval {eval_id} is not among the files")
        known = {run_id for runs in self._runs.values() for run_id in runs}
        for kind, run_id in self._lines:
            if kind == "item" and run_id not in known:
                yield _loss(MigrationKind.EVAL_RUN, run_id, "only its output items are among the files, not the run")

    # ── how files are read ──

    def _read_promptfoo(self, paths: Sequence[Path]) -> set[Path]:
        """Read the configs and the results of Promptfoo; return all files that they consist of."""
        files: set[Path] = set()
        rows: dict[str, set[str]] = defaultdict(set)
        for reading in promptfoo.read(paths):
            files |= reading.files
            for value in reading.values:
                if "eval" in value:  # a config and its results have the same rows
                    known = rows[value["eval"]["id"]]
                    new = {text: row for row in value["rows"] if (text := json.dumps(row)) not in known}
                    known.update(new)
                    value["rows"] = list(new.values())
                self._add(value, Counter())
            for what, reason, is_lost in reading.remarks:
                outcome = MigrationOutcome.LOST if is_lost else MigrationOutcome.DIFFERENT
                origin = f"{reading.source.name}: {what}"
                self._remarks.append(ReportRow(MigrationKind.EVAL, origin, None, outcome, reason))
        return files

    def _read(self, path: Path) -> None:
        """Read the objects of a file. What is broken becomes a remark, and the rest is read."""
        if (content := _CONTENT.match(path.name)) and path.suffix != ".json":
            self._contents[content[0]] = path
            return
        if path.suffix not in (".json", ".jsonl"):
            self._remark(path, "it is neither .json nor .jsonl, nor named after the id of a file")
            return
        others: Counter[str] = Counter()
        try:
            for value in _values(path):
                self._add(value, others)
        except CliError as error:
            self._remark(path, str(error))
        except RecursionError:
            self._remark(path, "it is nested too deeply")
        for kind, count in others.items():
            self._remark(path, f"{count} of its objects are of the kind {visible(kind)[:80]}, which does not come over")

    def _remark(self, path: Path, reason: str) -> None:
        self._remarks.append(_loss(MigrationKind.FILE, str(path), reason))

    def _add(self, value: Any, others: Counter[str]) -> None:
        """Add an object, or those of a list. Raises CliError."""
        kind = _kind(value)
        if kind == "page":
            for entry in value["data"]:
                self._add(entry, others)
        elif add := self._readers.get(kind):
            add(value)
        elif kind in _WHOLE:
            self._keep(
                self._objects[kind], id_of(value, "openai_prompt_id" if "openai_prompt_id" in value else "id"), value
            )
        elif kind != _OWN_REPORT:
            others[kind] += 1

    @property
    def _readers(self) -> Mapping[str, Callable[[Object], None]]:
        return {
            "eval.run": self._add_run,
            "eval.run.output_item": self._add_item,
            "eval export": self._add_export,
            "vector_store.file": self._add_attachments,
        }

    def _add_run(self, value: Object) -> None:
        self._keep(self._runs[id_of(value, "eval_id")], id_of(value), value)

    def _add_attachments(self, value: Object) -> None:
        self._keep(self._attached[id_of(value, "vector_store_id")], id_of(value), value)

    def _add_item(self, value: Object) -> None:
        self._write("item", id_of(value, "run_id"), [value])

    def _add_export(self, value: Object) -> None:
        """Add an eval with its rows, and its runs with their output items, from one object."""
        eval_id = id_of(value["eval"])
        self._keep(self._objects["eval"], eval_id, value["eval"])
        self._write("row", eval_id, _objects(value.get("rows")))
        for entry in _objects(value.get("runs")):
            run = entry.get("run")
            if not isinstance(run, dict):
                raise CliError("one of its 'runs' has no 'run'")
            self._keep(self._runs[eval_id], id_of(run), run | {"eval_id": eval_id})
            self._write("item", id_of(run), _objects(entry.get("output_items")))

    def _keep(self, objects: dict[str, Object], name: str, value: Object) -> None:
        if name not in objects and len(objects) >= MAX_OBJECTS:
            raise CliError(f"there are more than {MAX_OBJECTS} objects of a kind")
        objects[name] = value

    def _write(self, kind: str, owner: str, values: Sequence[Object]) -> None:
        if not values:
            return
        path = self._lines.setdefault((kind, owner), self._scratch / f"{len(self._lines)}.jsonl")
        with path.open("a", encoding="utf-8") as out:
            out.writelines(json.dumps(value) + "\n" for value in values)

    def _lines_of(self, kind: str, owner: str) -> Iterator[Object]:
        path = self._lines.get((kind, owner))
        if path is not None:
            with path.open(encoding="utf-8") as lines:
                yield from map(json.loads, lines)


def _walk(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the files of folders, and those that are named themselves, without hidden ones. Raises CliError."""
    count = 0
    for path in paths:
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in inside:
            if not file.is_file() or any(part.startswith(".") for part in file.relative_to(path).parts):
                continue
            if (count := count + 1) > MAX_OBJECTS:
                raise CliError(f"{path} has more than {MAX_OBJECTS} files")
            yield file


def _opener(path: Path) -> Opener:
    return lambda: nullcontext(path)


def _kind(value: Any) -> str:
    """Return the kind of an object: its own word, or what its fields tell."""
    if not isinstance(value, dict):
        return f"JSON {type(value).__name__}"
    if isinstance(value.get("eval"), dict) and ("rows" in value or "runs" in value):
        return "eval export"
    if isinstance(value.get("versions"), list) and ("openai_prompt_id" in value or "id" in value):
        return "prompt"
    kind = value.get("object")
    if isinstance(value.get("data"), list) and kind in (None, "list"):
        return "page"  # the SDK's pages have no other mark
    return kind if isinstance(kind, str) else "unknown"


def _objects(value: Any) -> list[Object]:
    """Return a list of objects, empty for null. Raises CliError."""
    values = [] if value is None else value
    if not isinstance(values, list) or not all(isinstance(entry, dict) for entry in values):
        raise CliError("'rows', 'runs' and 'output_items' are lists of objects")
    return values


def _values(path: Path) -> Iterator[Any]:
    """Yield the values of a file of JSON Lines, or the value of a JSON file. Raises CliError."""
    try:
        if path.suffix != ".jsonl":
            if path.stat().st_size > MAX_WHOLE_BYTES:
                raise CliError(
                    f"it has more than {MAX_WHOLE_BYTES} bytes: save an object on each line of a .jsonl file"
                )
            value = _parse(path.read_bytes(), "it")
            yield from value if isinstance(value, list) else (value,)
            return
        with path.open("rb") as lines:
            number = 0
            while raw := lines.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(raw) > MAX_LINE_BYTES:
                    raise CliError(f"line {number} has more than {MAX_LINE_BYTES} bytes")
                if raw.strip():
                    yield _parse(raw, f"line {number}")
    except OSError as error:
        raise CliError(f"it cannot be read: {error.strerror}") from error


def _parse(raw: bytes, what: str) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CliError(f"{what} is not JSON: {error}") from None


def _loss(kind: MigrationKind, origin_id: str, reason: str) -> ReportRow:
    return ReportRow(kind, origin_id, None, MigrationOutcome.LOST, reason)
