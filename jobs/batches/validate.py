"""Check one batch file in a process of its own: `python -m jobs.batches.validate`.

    stdin   {"storage": url, "path": …, "endpoint": …, rules …}        one JSON object
    stdout  {"total", "bytes", "inputs", "model", "first_line", "errors", "truncated"}

The file is untrusted, so the process runs within limits of memory and time (`jobs.platform.children`). Schemas and the
lengths of prompts are checked for a part of this time: what is left then is accepted.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, BinaryIO

import msgspec

from jobs.batches import lines
from jobs.batches.contents import Contents
from jobs.db.engine import Database
from jobs.errors import InvalidRequest, NightmillError
from jobs.inference.context_options import PROMPT, context_options_of
from jobs.platform.storage import open_storage
from jobs.prompts import versions
from jobs.prompts.resolution import MESSAGES, PinnedPrompts, PromptReference, ResolvedPrompt
from jobs.requests import fields
from jobs.requests.endpoints import EMBEDDINGS
from jobs.settings import settings

MAX_ERRORS = 1000


@dataclass(frozen=True, slots=True)
class DryRun:
    """The file, and the rules to check it by.

    `engines` has the engine kind of each model, `contexts` the tokens of its context and the file of its tokenizer.
    """

    storage: str
    path: str
    endpoint: str
    project_id: str
    max_lines: int
    max_bytes: int
    engines: dict[str, str]
    contexts: Mapping[str, tuple[int, str]] = field(default_factory=dict)


class _Body(msgspec.Struct):
    """The fields by which a line is worth reading whole."""

    context: Any = None
    truncation: Any = None
    previous_response_id: Any = None
    conversation: Any = None
    background: Any = None

    @property
    def asks(self) -> bool:
        return any(getattr(self, name) is not None for name in self.__struct_fields__)


class _Wishes(msgspec.Struct):
    body: _Body


_wishes = msgspec.json.Decoder(_Wishes)


@dataclass(slots=True)
class BatchFindings:
    """The contents of the file. `truncated`: it has more errors than are named."""

    total: int = 0
    bytes: int = 0
    inputs: int = 0
    model: str | None = None
    first_line: int | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)
    truncated: bool = False

    def complain(self, bad: lines.Bad) -> None:
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(bad.as_dict())
        else:
            self.truncated = True


def main() -> None:
    dry_run = DryRun(**json.load(sys.stdin))
    json.dump(asdict(check(dry_run)), sys.stdout)


def check(dry_run: DryRun) -> BatchFindings:
    """Check a whole file as planning would, and the fields of its lines that only Nightmill knows."""
    findings = BatchFindings()
    prompts = PinnedPrompts(partial(_find_prompt, dry_run.project_id))
    checker = lines.LineChecker(dry_run.endpoint, prompts)
    contents = Contents(dry_run.endpoint, dry_run.contexts)
    storage = open_storage(dry_run.storage)
    if storage.size(dry_run.path) > dry_run.max_bytes:
        findings.complain(lines.Bad("file_too_large", f"The input file exceeds {dry_run.max_bytes} bytes."))
        return findings
    with storage.reader(dry_run.path) as handle:
        _judge(handle, checker, contents, prompts, dry_run, findings)
    suspects = checker.ids.suspects()
    if suspects:
        with storage.reader(dry_run.path) as handle:
            for bad in lines.duplicates(handle, suspects):
                findings.complain(bad)
    findings.errors.sort(key=lambda error: error["line"] or 0)
    findings.model = checker.model
    _judge_totals(dry_run, findings)
    return findings


def _find_prompt(project_id: str, reference: PromptReference) -> ResolvedPrompt:
    """Return a prompt of the project. The database is opened for it alone: few files name any. Raises: NotFound."""
    database = Database(settings().database)
    try:
        with database.read() as session:
            return versions.resolve(session, project_id, reference)
    finally:
        database.close()


def _judge(
    handle: BinaryIO,
    checker: lines.LineChecker,
    contents: Contents,
    prompts: PinnedPrompts,
    dry_run: DryRun,
    findings: BatchFindings,
) -> None:
    for text in lines.read(handle):
        findings.total += 1
        findings.bytes += text.length
        checked = checker.check(text)
        if isinstance(checked, lines.Good):
            checked = _error(checked.model, contents, prompts, dry_run, text) or checked
        if isinstance(checked, lines.Bad):
            findings.complain(checked)
            continue
        findings.inputs += checked.inputs
        findings.first_line = findings.first_line or text.number


def _error(
    model: str, contents: Contents, prompts: PinnedPrompts, dry_run: DryRun, text: lines.InputLine
) -> lines.Bad | None:
    """Return the error of a line that planning accepts and that would fail, or be refused by its engine."""
    try:
        text = _resolve_prompt(prompts, dry_run.endpoint, text)
    except NightmillError as error:
        return lines.Bad(error.code or "invalid_value", error.message, text.number, f"body.{error.param}")
    engine, body = dry_run.engines.get(model, ""), _named.decode(text.raw or b"").body
    return (
        _line_error(dry_run.endpoint, text)
        or _unknown(engine, dry_run.endpoint, text.number, body)
        or contents.error_of(model, text.number, body)
    )


def _resolve_prompt(prompts: PinnedPrompts, endpoint: str, text: lines.InputLine) -> lines.InputLine:
    """Return the line that an engine would be sent for one that names a prompt. Raises: InvalidRequest, NotFound."""
    named = _named.decode(text.raw or b"").body
    if endpoint not in MESSAGES or bytes(named.get("prompt", b"null")) == b"null":
        return text
    body, _ = prompts.apply(endpoint, msgspec.json.decode(msgspec.json.encode(named)))
    return replace(text, raw=msgspec.json.encode({"custom_id": "", "body": body}))


def _line_error(endpoint: str, text: lines.InputLine) -> lines.Bad | None:
    """Return the error of a line for which it would fail by itself, after planning has accepted it."""
    raw = text.raw or b""
    try:
        if endpoint in PROMPT and _wishes.decode(raw).body.asks:
            body = msgspec.json.decode(lines.working.decode(raw).body)
            context_options_of(endpoint, body)
            lines.check_self_contained(endpoint, body)
    except InvalidRequest as error:
        return lines.Bad(error.code or "invalid_value", error.message, text.number, f"body.{error.param}")
    except (msgspec.MsgspecError, RecursionError):  # the engine will refuse it
        return None
    return None


class _Named(msgspec.Struct):
    """The fields of a line's body, with undecoded values."""

    body: dict[str, msgspec.Raw]


_named = msgspec.json.Decoder(_Named)


def _unknown(engine: str, endpoint: str, number: int, body: Mapping[str, msgspec.Raw]) -> lines.Bad | None:
    """Return the error of a line with a field that its engine does not know."""
    name = fields.unknown(engine, endpoint, (name for name, value in body.items() if bytes(value) != b"null"))
    if name is None:
        return None
    return lines.Bad(fields.CODE, fields.message(name), number, f"body.{fields.quote(name)}")


def _judge_totals(dry_run: DryRun, findings: BatchFindings) -> None:
    if findings.total > dry_run.max_lines:
        findings.complain(lines.Bad("too_many_requests", f"The input file has more than {dry_run.max_lines} requests."))
    if dry_run.endpoint == EMBEDDINGS and findings.inputs > dry_run.max_lines:
        message = f"The batch has more than {dry_run.max_lines} embedding inputs."
        findings.complain(lines.Bad("too_many_inputs", message))
    if not findings.total:
        findings.complain(lines.Bad("empty_file", "The input file contains no requests."))


if __name__ == "__main__":
    main()
