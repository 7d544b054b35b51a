"""A dry run over one batch file, in a process of its own: `python -m jobs.batches.validate`.

    stdin   {"storage": url, "path": …, "endpoint": …, limits …}       one JSON object
    stdout  {"total", "bytes", "inputs", "model", "first_line", "errors", "truncated"}

It reads what a stranger wrote, so it gives itself little memory and little time before it begins.
"""

import json
import resource
import sys
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

import msgspec

from jobs.batches import lines
from jobs.errors import InvalidRequest
from jobs.inference.context_options import PROMPT, context_options_of
from jobs.platform.storage import open_storage
from jobs.requests import fields
from jobs.requests.endpoints import EMBEDDINGS

MAX_ERRORS = 1000


@dataclass(frozen=True, slots=True)
class Asked:
    """What to read, how to judge it, and what this process may use. `engines` are the kinds behind models' names."""

    storage: str
    path: str
    endpoint: str
    max_lines: int
    max_line_bytes: int
    max_bytes: int
    max_inputs: int
    engines: dict[str, str]
    memory_bytes: int
    cpu_seconds: int


class _Body(msgspec.Struct):
    """What makes a line worth reading whole."""

    context: Any = None
    truncation: Any = None
    previous_response_id: Any = None
    conversation: Any = None
    background: Any = None

    @property
    def asks(self) -> bool:
        return any(getattr(self, name) is not None for name in self.__struct_fields__)


class _Asking(msgspec.Struct):
    body: _Body


_asking = msgspec.json.Decoder(_Asking)


@dataclass(slots=True)
class Found:
    """What the file holds. `truncated`: there were more errors than are named."""

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
    asked = Asked(**json.load(sys.stdin))
    resource.setrlimit(resource.RLIMIT_AS, (asked.memory_bytes, asked.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (asked.cpu_seconds, asked.cpu_seconds))
    json.dump(asdict(check(asked)), sys.stdout)


def check(asked: Asked) -> Found:
    """Judge a whole file as planning would, and of its lines what we alone know."""
    found = Found()
    checker = lines.Checker(asked.endpoint)
    storage = open_storage(asked.storage)
    if storage.size(asked.path) > asked.max_bytes:
        found.complain(lines.Bad("file_too_large", f"The input file exceeds {asked.max_bytes} bytes."))
        return found
    with storage.reader(asked.path) as handle:
        _judge(handle, checker, asked, found)
    suspects = checker.ids.suspects()
    if suspects:
        with storage.reader(asked.path) as handle:
            for bad in lines.duplicates(handle, asked.max_line_bytes, suspects):
                found.complain(bad)
    found.errors.sort(key=lambda error: error["line"] or 0)
    found.model = checker.model
    _judge_totals(asked, found)
    return found


def _judge(handle: BinaryIO, checker: lines.Checker, asked: Asked, found: Found) -> None:
    for text in lines.read(handle, asked.max_line_bytes):
        found.total += 1
        found.bytes += text.length
        checked = checker.check(text)
        if isinstance(checked, lines.Good):
            engine = asked.engines.get(checked.model, "")
            checked = _odd(asked.endpoint, text) or _unknown(engine, asked.endpoint, text) or checked
        if isinstance(checked, lines.Bad):
            found.complain(checked)
            continue
        found.inputs += checked.inputs
        found.first_line = found.first_line or text.number


def _odd(endpoint: str, text: lines.Text) -> lines.Bad | None:
    """What a line asks for that it will not get, or wrongly. Planning lets it pass: it fails by itself."""
    raw = text.raw or b""
    try:
        if endpoint in PROMPT and _asking.decode(raw).body.asks:
            body = msgspec.json.decode(lines.working.decode(raw).body)
            context_options_of(endpoint, body)
            lines.check_alone(endpoint, body)
    except InvalidRequest as error:
        return lines.Bad(error.code or "invalid_value", error.message, text.number, f"body.{error.param}")
    except (msgspec.MsgspecError, RecursionError):  # the engine will say
        return None
    return None


class _Named(msgspec.Struct):
    """The fields of a line's body, their values unread."""

    body: dict[str, msgspec.Raw]


_named = msgspec.json.Decoder(_Named)


def _unknown(engine: str, endpoint: str, text: lines.Text) -> lines.Bad | None:
    """Return the error of a line with a field that its engine does not know."""
    body = _named.decode(text.raw or b"").body
    name = fields.unknown(engine, endpoint, (name for name, value in body.items() if bytes(value) != b"null"))
    if name is None:
        return None
    return lines.Bad(fields.CODE, fields.message(name), text.number, f"body.{fields.quoted(name)}")


def _judge_totals(asked: Asked, found: Found) -> None:
    if found.total > asked.max_lines:
        found.complain(lines.Bad("too_many_requests", f"The input file has more than {asked.max_lines} requests."))
    if asked.endpoint == EMBEDDINGS and found.inputs > asked.max_inputs:
        found.complain(lines.Bad("too_many_inputs", f"The batch has more than {asked.max_inputs} embedding inputs."))
    if not found.total:
        found.complain(lines.Bad("empty_file", "The input file contains no requests."))


if __name__ == "__main__":
    main()
