"""Batch files. What is bad in one is told after the answer: `failed`, with the code and the number of each bad line."""

import gzip
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from tests.badinputs.case import Case
from tests.badinputs.world import World, raw_said, said
from tests.support.inline_deployment import chat_line, jsonl

AREA = "JSONL"
_SHOWN = 3

A, B = (json.dumps(chat_line(name, "hello")).encode() for name in "ab")


def changed(custom_id: Any = "b", **changes: Any) -> bytes:
    """Return a good line, and a second one that differs from it."""
    line = chat_line("b", "hello") | {"custom_id": custom_id} | changes
    return A + b"\n" + json.dumps(line).encode() + b"\n"


def body(**changes: Any) -> bytes:
    return changed(body=chat_line("b", "hello")["body"] | changes)


def without(name: str) -> bytes:
    line = chat_line("b", "hello")
    del line[name]
    return A + b"\n" + json.dumps(line).encode()


def planned(world: World, content: Any, endpoint: str = "/v1/chat/completions") -> str:
    """Create a batch over this content; return its counts, or its errors with their lines."""
    batch = world.ended(world.submit(content, endpoint))
    if batch["status"] == "completed":
        counts = batch["request_counts"]
        return f"completed {counts['completed']}/{counts['total']}"
    return f"{batch['status']} {errors(batch['errors']['data'])}"


def errors(found: list[dict[str, Any]]) -> str:
    """`code@line`, the first few, and how many there are."""
    told = [f"{error['code']}@{error['line']}" if error["line"] else error["code"] for error in found]
    return ", ".join(told[:_SHOWN]) + (f" … ({len(told)})" if len(told) > _SHOWN else "")


def echoed(world: World, custom_id: str) -> str:
    """Check that an odd but permitted custom_id is returned unchanged."""
    batch = world.ended(world.submit(changed(custom_id)))
    lines = world.client.get(f"/v1/files/{batch['output_file_id']}/content").content.splitlines()
    same = sorted(json.loads(line)["custom_id"] for line in lines) == sorted(["a", custom_id])
    return f"{batch['status']}, the same comes back" if same else f"{batch['status']}, changed"


def bounded(world: World, content: Any) -> str:
    """Check that the report on a bad file is smaller than the file."""
    batch_id = world.submit(content)
    world.ended(batch_id)
    size = len(world.client.get(f"/v1/batches/{batch_id}").content)
    return f"{planned(world, content)}; {'less' if size < 1_000_000 else 'more'} than 1 MB"


@contextmanager
def file_of(world: World, write: Callable[[BinaryIO], None]) -> Iterator[BinaryIO]:
    """Write a large file to the disk."""
    with tempfile.TemporaryFile(dir=world.folder) as file:
        write(file)
        file.seek(0)
        yield file


def large(write: Callable[[BinaryIO, World], None]) -> Callable[[World], str]:
    def run(world: World) -> str:
        with file_of(world, lambda file: write(file, world)) as file:
            return planned(world, file)

    return run


def many(file: BinaryIO, count: int, bad: int = 0) -> None:
    """Good lines, but for one."""
    text = json.dumps(chat_line("c%d", "hi")).encode()
    file.writelines((b"{" if n == bad else text.replace(b"%d", b"%d" % n)) + b"\n" for n in range(1, count + 1))


def one_line(file: BinaryIO, size: int) -> None:
    file.write(A[:-3])
    file.writelines(b"x" * (1 << 20) for _ in range(size >> 20))


def empty_lines(world: World) -> int:
    return 5_000_000 if world.full else 1_000_000


def one_bad(world: World) -> str:
    """Among 200,000 lines, in full among a million."""
    count = 1_000_000 if world.full else 200_000
    with file_of(world, lambda file: many(file, count, bad=count - 4_567)) as file:
        got = planned(world, file)
    return got.replace(f"@{count - 4_567}", "@its line")


def empty_then_bad(world: World) -> str:
    count = empty_lines(world)
    with file_of(world, lambda file: file.writelines([b"\n" * count, b"{"]) and None) as file:
        return planned(world, file).replace(f"@{count + 1}", "@its line")


def gigabyte(world: World) -> str:
    """Send a line of 1 GB, which is more than a file may have: its length alone must refuse it."""
    lines = ["POST /v1/files HTTP/1.1", "Host: x", f"Authorization: Bearer {world.key}", "Connection: close"]
    lines += ["Content-Type: multipart/form-data; boundary=x", f"Content-Length: {1 << 30}", "", ""]
    return raw_said(world.raw("\r\n".join(lines).encode()))


def dry_run(world: World, content: bytes) -> str:
    """Return the answer of `POST /v1/batches/validate`."""
    file_id = world.upload(content).json()["id"]
    answer = world.client.post(
        "/v1/batches/validate", json={"input_file_id": file_id, "endpoint": "/v1/chat/completions"}
    )
    return said(answer) if answer.status_code != 200 else errors(answer.json()["errors"]["data"])


def fine() -> dict[str, tuple[str, bytes]]:
    """Yield requests that must be accepted."""
    return {
        "CRLF": ("completed 2/2", A + b"\r\n" + B + b"\r\n"),
        "no newline at the end": ("completed 2/2", A + b"\n" + B),
        "a byte order mark": ("completed 2/2", b"\xef\xbb\xbf" + A + b"\n" + B),
        "blank lines between": ("completed 2/2", b"\n\n" + A + b"\n \t\r\n\n" + B + b"\n\n"),
        "a body 500 deep": ("completed 2/2", body(x=json.loads("[" * 500 + "]" * 500))),
        "a field nobody knows": ("completed 2/2", changed(x=1)),
        "an empty custom_id": ("completed 2/2", changed("")),
    }


def bad_lines() -> dict[str, tuple[str, bytes]]:
    invalid = "failed invalid_json_line@2"
    line = json.dumps(chat_line("b", "%s")).encode()
    return {
        "a line that is no JSON": (invalid, A + b"\n{\n"),
        "an array": (invalid, A + b"\n[]\n"),
        "a number": (invalid, A + b"\n1\n"),
        "200,000 deep [[[": (invalid, A + b"\n" + b"[" * 200_000),
        "a body 200,000 deep": (invalid, A + b"\n" + line.replace(b'"%s"', b"[" * 200_000 + b"]" * 200_000)),
        "NaN": (invalid, A + b"\n" + line.replace(b'"%s"', b"NaN")),
        "invalid UTF-8 in a prompt": (invalid, A + b"\n" + line.replace(b"%s", b"\xff\xfe")),
        "a raw NUL in a prompt": (invalid, A + b"\n" + line.replace(b"%s", b"\0")),
        "two values on a line": (invalid, A + b"\n" + A + A),
        "UTF-16": ("failed invalid_json_line@1, invalid_json_line@2", (A + b"\n" + B).decode().encode("utf-16")),
        "U+2028 for a newline": ("failed invalid_json_line@1", A + "\u2028".encode() + B),
        "CR alone for a newline": ("failed invalid_json_line@1", A + b"\r" + B),
        "a custom_id of lone surrogates": (invalid, A + b"\n" + line.replace(b'"b"', b'"\\ud800"')),
        "no custom_id": ("failed missing_required_parameter@2", without("custom_id")),
        "no method": ("failed missing_required_parameter@2", without("method")),
        "no url": ("failed missing_required_parameter@2", without("url")),
        "no body": ("failed missing_required_parameter@2", without("body")),
        "a custom_id that is a number": ("failed invalid_type@2", changed(5)),
        "GET": ("failed invalid_method@2", changed(method="GET")),
        "the url of another endpoint": ("failed invalid_url@2", changed(url="/v1/embeddings")),
        "the url of a host": ("failed invalid_url@2", changed(url="http://127.0.0.1/v1/chat/completions")),
        "stream": ("failed streaming_unsupported@2", body(stream=True)),
        "no model": ("failed invalid_request@2", body(model=None)),
        "no messages": ("failed invalid_request@2", body(messages=None)),
        "another model": ("failed model_mismatch@2", body(model="another")),
        "a custom_id twice, and again": (
            "failed duplicate_custom_id@3, duplicate_custom_id@5",
            b"\n".join([A, B, A, b"", B]),
        ),
        "a custom_id twice, once escaped": (
            "failed duplicate_custom_id@2",
            A + b"\n" + A.replace(b'"custom_id": "a"', b'"custom_id": "\\u0061"'),
        ),
        "0 bytes": ("failed empty_file", b""),
        "a byte order mark alone": ("failed empty_file", b"\xef\xbb\xbf"),
        "gzip": ("failed invalid_json_line@1", gzip.compress(A, mtime=0).replace(b"\n", b"")),
        "a PNG called .jsonl": (
            "failed invalid_json_line@1, invalid_json_line@2",
            b"\x89PNG\r\n\x1a" + bytes(20) + b"IHDR",
        ),
        "2,000 bad lines": (
            "failed invalid_json_line@1, invalid_json_line@2, invalid_json_line@3 … (1000)",
            b"{\n" * 2000,
        ),
    }


def cases() -> Iterator[Case]:
    for name, (expected, content) in (fine() | bad_lines()).items():
        yield Case(AREA, name, expected, lambda world, content=content: planned(world, content), creates=True)
    for name, custom_id in {
        "a custom_id of 10 KB": "x" * 10_240,
        "a custom_id with newlines": "a\r\nb\n",
        "a custom_id with ../": "../../../etc/passwd",
        "a custom_id with NUL": "a\0b",
        "a custom_id like a formula": "=cmd|' /C calc'!A0",
    }.items():
        expected = "completed, the same comes back"
        yield Case(AREA, name, expected, lambda world, text=custom_id: echoed(world, text), creates=True)
    names = jsonl([chat_line(f"c{n}", "x", model=f"{n}" + "x" * 20_000) for n in range(500)])
    yield Case(
        AREA,
        "500 models of 20 KB each",
        "failed model_mismatch@2, model_mismatch@3, model_mismatch@4 … (499); less than 1 MB",
        lambda world: bounded(world, names),
        creates=True,
    )
    yield Case(
        AREA, "50,000 lines, the limit", "completed 50000/50000", large(lambda f, w: many(f, 50_000)), creates=True
    )
    yield Case(AREA, "50,001 lines", "failed too_many_requests", large(lambda f, w: many(f, 50_001)), creates=True)
    yield Case(
        AREA, "one bad among very many", "failed invalid_json_line@its line", one_bad, creates=True, world="open"
    )
    yield Case(
        AREA,
        "one line of 100 MB or more without a newline",
        "failed line_too_long@1",
        large(lambda f, w: one_line(f, (190 if w.full else 100) << 20)),
        creates=True,
        seconds=30,
    )
    yield Case(
        AREA,
        "a file of more than 200 MB",
        "failed file_too_large",
        large(lambda f, w: f.truncate(201 << 20) and None),
        creates=True,
        seconds=30,
        world="open",
    )
    yield Case(AREA, "a line of 1 GB", "413 request_too_large", gigabyte)
    yield Case(
        AREA,
        "a million empty lines",
        "failed empty_file",
        large(lambda f, w: f.write(b"\n" * empty_lines(w)) and None),
        creates=True,
    )
    yield Case(
        AREA, "a million empty lines, then a bad one", "failed invalid_json_line@its line", empty_then_bad, creates=True
    )
    dry = b"\n".join([A, b"{", A, B])
    yield Case(
        AREA,
        "a dry run of bad lines",
        "invalid_json_line@2, duplicate_custom_id@3",
        lambda world: dry_run(world, dry),
        creates=True,
        seconds=10,
    )
