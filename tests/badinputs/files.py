"""File names, forms and uploads that are cut, sent twice, or not what they were said to be."""

import os
from collections.abc import Iterator
from typing import Any

from tests.badinputs.case import Case
from tests.badinputs.world import World, raw_said, said

AREA = "Files"

REFUSED = {
    "of 4 KB": "x" * 4096,
    "of 256 characters": "x" * 256,
    "empty": "",
    "of blanks": "   ",
    "of dots and a slash": "../",
    "..": "..",
    ".": ".",
    "with right-to-left override": "a\u202egpj.jsonl",
    "with a first-strong isolate": "a\u2068b.jsonl",
    "with a newline": "a\nb.jsonl",
    "with an escape": "a\x1b[31mb.jsonl",
    "with C1 controls": "a\x9bb.jsonl",
    "with a line separator": "a\u2028b.jsonl",
}
KEPT = {
    "../../etc/passwd": "passwd",
    "C:\\Windows\\system32\\a.jsonl": "a.jsonl",
    "/abs/olute.jsonl": "olute.jsonl",
    "naïve 文件.jsonl": "naïve 文件.jsonl",
    "x" * 255: "x" * 255,
    "a\";'<b>.jsonl": "a\";'<b>.jsonl",
}
UPLOAD = {"bytes": 4, "filename": "a.jsonl", "mime_type": "text/plain", "purpose": "batch"}


def in_json(world: World, name: str) -> str:
    """Send the name of an upload in JSON, which hides nothing."""
    return said(world.client.post("/v1/uploads", json=UPLOAD | {"filename": name}))


def in_form(world: World, name: bytes) -> str:
    """Send the name in a form, byte by byte."""
    return form(world, b'form-data; name="file"; filename="' + name + b'"')


def form(world: World, disposition: bytes, *, boundary: bytes = b"b", closed: bool = True, purpose: bool = True) -> str:
    parts = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n' if purpose else b""
    parts += b"--b\r\nContent-Disposition: " + disposition + b"\r\n\r\nhello\r\n" + (b"--b--\r\n" if closed else b"")
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary.decode()}"}
    return said(world.client.post("/v1/files", content=parts, headers=headers))


def kept(world: World, name: str) -> str:
    """Return how a name is stored, from the list and from the download's header."""
    made = world.client.post("/v1/uploads", json=UPLOAD | {"filename": name})
    return str(made.json()["filename"])


def cut(world: World) -> str:
    """Half of a file, then nothing: no file. The whole, twice with one key: one file."""
    content = os.urandom(200_000)
    head = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    head += b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    whole = head + content + b"\r\n--b--\r\n"
    lines = [
        "POST /v1/files HTTP/1.1", "Host: x", f"Authorization: Bearer {world.key}", "Idempotency-Key: cut",
        "Content-Type: multipart/form-data; boundary=b", f"Content-Length: {len(whole)}", "Connection: close", "", "",
    ]  # fmt: skip
    before = world.created()
    first = raw_said(world.raw("\r\n".join(lines).encode() + whole[: len(whole) // 2], half_close=True)) or "closed"
    world.eventually(lambda: world.created() == before, "the half is gone")
    again = [raw_said(world.raw("\r\n".join(lines).encode() + whole)) for _ in range(2)]
    after = world.created()
    return f"{first}, then {', '.join(again)}: {after['file'] - before['file']} file"


def resumed(world: World) -> str:
    """Complete an upload whose second part was cut off; then a whole one; then one with another part."""
    upload_id = world.client.post("/v1/uploads", json=UPLOAD).json()["id"]

    def part(data: bytes) -> str:
        return str(world.client.post(f"/v1/uploads/{upload_id}/parts", files={"data": ("u", data)}).json()["id"])

    def complete(*ids: str) -> str:
        return said(world.client.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": list(ids)}))

    first, again, cut_short, second = part(b"ab"), part(b"ab"), part(b"c"), part(b"cd")
    told = [complete(first, cut_short), complete(first, first), complete(first, second), complete(again, second)]
    return ", ".join(told)


def lying(world: World, **changes: Any) -> str:
    upload_id = world.client.post("/v1/uploads", json=UPLOAD).json()["id"]
    part = world.client.post(f"/v1/uploads/{upload_id}/parts", files={"data": ("u", b"abcd")}).json()["id"]
    body = {"part_ids": [part]} | changes
    return said(world.client.post(f"/v1/uploads/{upload_id}/complete", json=body))


def too_large(world: World) -> str:
    """More bytes than a file may have, without a length that says so."""

    def chunks() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(301 if world.full else 287):  # 300,000,000 bytes are the most
            yield bytes(1 << 20)

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    return said(world.client.post("/v1/files", content=chunks(), headers=headers))


def cases() -> Iterator[Case]:
    for name, text in REFUSED.items():
        run = lambda world, text=text: in_json(world, text)  # noqa: E731
        code = "string_above_max_length" if len(text) > 4096 else "invalid_value"
        yield Case(AREA, f"a name {name}", f"400 {code}", run)
    bad = "400 invalid_filename"
    for label, raw in {"with a raw NUL": b"a\0b", "in Latin-1": b"na\xefve", "with a raw escape": b"a\x1bb"}.items():
        expected = bad if label == "with a raw escape" else "400 invalid_form"
        yield Case(AREA, f"a form's name {label}", expected, lambda world, raw=raw: in_form(world, raw))
    for label in ("of 4 KB", "with right-to-left override", ".."):
        raw = REFUSED[label].encode()
        yield Case(AREA, f"a form's name {label}", bad, lambda world, raw=raw: in_form(world, raw))
    for text, name in KEPT.items():
        yield Case(AREA, f"the name {text[:40]}", name, lambda world, text=text: kept(world, text), creates=True)
    shapes = {
        "a form without a file": ("400 unknown_parameter", b'form-data; name="other"; filename="a"', {}),
        "a form whose file is text": ("400 invalid_type", b'form-data; name="file"', {}),
        "a form without a name": ("400 invalid_form", b"form-data", {}),
        "a form without a purpose": (
            "400 missing_required_parameter",
            b'form-data; name="file"; filename="a"',
            {"purpose": False},
        ),
        "a form without an end": ("400 invalid_form", b'form-data; name="file"; filename="a"', {"closed": False}),
        "another boundary than said": ("400 invalid_form", b'form-data; name="file"; filename="a"', {"boundary": b"c"}),
        "a boundary of 200 characters": (
            "400 invalid_form",
            b'form-data; name="file"; filename="a"',
            {"boundary": b"c" * 200},
        ),
    }
    for label, (expected, disposition, options) in shapes.items():
        run = lambda world, one=disposition, options=options: form(world, one, **options)  # noqa: E731
        yield Case(AREA, label, expected, run)
    yield Case(AREA, "an upload cut at half, then twice", "closed, then 200, 200: 1 file", cut, creates=True)
    yield Case(
        AREA,
        "parts cut, sent twice, named twice",
        "400 bytes_mismatch, 400 duplicate_part, 200, 400 upload_completed",
        resumed,
        creates=True,
    )
    yield Case(
        AREA, "an MD5 that is not the file's", "400 md5_mismatch", lambda w: lying(w, md5="0" * 32), creates=True
    )
    yield Case(AREA, "a part nobody sent", "400 part_not_found", lambda w: lying(w, part_ids=["part_x"]), creates=True)
    yield Case(AREA, "a file beyond the limit, chunked", "413 request_too_large", too_large, seconds=30, world="open")
    yield Case(
        AREA,
        "an upload of 100 TB",
        "400 integer_above_max_value",
        lambda w: said(w.client.post("/v1/uploads", json=UPLOAD | {"bytes": 10**14})),
    )
