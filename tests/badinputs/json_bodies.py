"""JSON that is none, or too much, or ambiguous: sent to every route that takes JSON."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from api.http.middleware import OPEN
from tests.badinputs.case import Case
from tests.badinputs.world import World, said
from tests.unit.api.calls import Route

AREA = "JSON"
JSON = {"Content-Type": "application/json"}
BATCH = {"input_file_id": "file-x", "endpoint": "/v1/embeddings", "completion_window": "24h"}

TEXTS = {
    "200,000 deep [[[": b"[" * 200_000,
    "200,000 deep, closed": b"[" * 200_000 + b"]" * 200_000,
    "an object 5,000 deep": b'{"metadata":' * 5_000 + b"1" + b"}" * 5_000,
    "the same name twice": b'{"input_file_id": "a", "input_file_id": "b"}',
    "the same name twice, deep down": b'{"metadata": {"a": {"b": 1, "b": 2}}}',
    "NaN": b'{"priority": NaN}',
    "-Infinity": b'{"priority": -Infinity}',
    "1e999": b'{"priority": 1e999}',
    "an integer of 5,000 digits": b'{"priority": ' + b"9" * 5_000 + b"}",
    "a lone surrogate": b'{"input_file_id": "\\ud800"}',
    "NUL, escaped": b'{"input_file_id": "a\\u0000b"}',
    "NUL, raw": b'{"input_file_id": "a\0b"}',
    "invalid UTF-8": b'{"input_file_id": "\xff\xfe"}',
    "an overlong UTF-8 slash": b'{"input_file_id": "\xc0\xaf"}',
    "UTF-16": '{"input_file_id": "x"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"input_file_id": "x"}',
    "a comment behind it": b"{} // text",
    "two values": b"{}{}",
    "cut in the middle": b'{"input_file_id": "file-x"',
}
#: The security of the routes that take a key of a project.
OF_PROJECTS: list[dict[str, list[str]]] = [{"ApiKey": []}]
ROOTS = {"an array": b"[]", "a string": b'"text"', "a number": b"1", "true": b"true"}


def routes(world: World) -> list[tuple[Route, dict[str, Any]]]:
    """Return all operations of the OpenAPI document that need a key."""
    paths = world.nobody.get("/openapi.json").json()["paths"]
    return [
        (Route(method.upper(), path), operation)
        for path, operations in paths.items()
        if path not in OPEN
        for method, operation in operations.items()
    ]


def taking_json(world: World) -> list[Route]:
    found = [
        route
        for route, operation in routes(world)
        if "application/json" in operation.get("requestBody", {}).get("content", {})
        and operation["security"] == OF_PROJECTS
    ]
    assert len(found) >= 8
    return found


def everywhere(world: World, text: bytes) -> str:
    """Return what all routes answer, each different answer once."""
    answers = set()
    for route in taking_json(world):
        path = route.path.replace("{", "").replace("}", "")
        answers.add(said(world.client.request(route.method, path, content=text, headers=JSON)))
    return " | ".join(sorted(answers))


def post(world: World, content: bytes | Iterable[bytes], **headers: str) -> str:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return said(world.client.post("/v1/batches", content=content, headers=JSON | given))


def batch(**changes: Any) -> bytes:
    return json.dumps(BATCH | changes).encode()


def pieces(count: int, size: int = 1 << 20) -> Iterator[bytes]:
    """Yield a string of so many pieces, so that it is never held as a whole."""
    yield b'{"input_file_id": "'
    for _ in range(count):
        yield b"x" * size
    yield b'"}'


def bomb(gigabytes: int) -> Iterator[bytes]:
    """Zeros, a thousandth of their size. Full: 10 MB that become 10 GB."""
    packer = zlib.compressobj(9, wbits=31)
    for _ in range(gigabytes * 64):
        yield packer.compress(bytes(1 << 24))
    yield packer.flush()


def bombed(world: World) -> str:
    """Chunked, so that it is not refused for its length alone."""
    return post(world, iter([b"".join(bomb(10 if world.full else 1))]), Content_Encoding="gzip")


def messages(world: World) -> str:
    """None of them is one."""
    text = json.dumps({"model": "m", "messages": [1] * 1_000_000})
    return said(world.client.post("/v1/chat/completions", content=text, headers=JSON))


def cases() -> Iterator[Case]:
    for name, text in TEXTS.items():
        yield Case(AREA, name, "400 invalid_json", lambda world, text=text: everywhere(world, text))
    for name, text in ROOTS.items():
        yield Case(AREA, f"{name} at the root", "400 invalid_type", lambda world, text=text: everywhere(world, text))
    for name, text in {"empty": b"", "null": b"null"}.items():
        expected = "200 | 400 missing_body | 404 not_found"  # some routes can do without a body: one creates a key
        yield Case(AREA, name, expected, lambda world, text=text: everywhere(world, text))
    single = {
        "a string of 50 MB": ("413 request_too_large", lambda world: post(world, b"".join(pieces(50)))),
        "a string of 50 MB, chunked": ("413 request_too_large", lambda world: post(world, pieces(50))),
        "a string of 3 MB": ("400 string_above_max_length", lambda world: post(world, b"".join(pieces(3)))),
        "a field nobody knows": ("400 unknown_parameter", lambda world: post(world, batch(frobnicate=1))),
        "a name of 3 MB": ("400 unknown_parameter", lambda world: post(world, batch(**{"x" * 3_000_000: 1}))),
        "100,000 unknown fields": (
            "400 object_above_max_properties",
            lambda world: post(world, batch(**{f"x{n}": 1 for n in range(100_000)})),
        ),
        "a million numbers for messages": ("400 too_many_values", messages),
        "metadata with 100,000 keys": (
            "400 too_many_values",
            lambda world: post(world, batch(metadata={f"x{n}": "" for n in range(100_000)})),
        ),
        "a gzip bomb": ("415 unsupported_encoding", bombed),
        "gzip, small": (
            "415 unsupported_encoding",
            lambda world: post(world, gzip.compress(batch()), Content_Encoding="gzip"),
        ),
        "an endpoint's secret that is none": (
            "400 invalid_value",
            lambda world: post(world, batch(webhook={"url": "https://192.0.43.8/", "secret": "s"})),
        ),
    }
    for name, (expected, run) in single.items():
        yield Case(AREA, name, expected, run)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "nonsense", ""):
        expected = "415 unsupported_media_type"
        yield Case(
            AREA,
            f"as Content-Type {kind!r}",
            expected,
            lambda world, kind=kind: post(world, batch(), **{"Content-Type": kind}),
        )
    utf16 = "application/json; charset=utf-16"
    yield Case(
        AREA,
        "as UTF-16, and so called",
        "415 unsupported_media_type",
        lambda world: post(world, batch(), Content_Type=utf16),
    )
