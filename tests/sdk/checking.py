"""How a check is written, whatever SDK it runs under: what it is told, what it is kept as, how it compares.

FACTS     those of `tests.sdk.deployment`
CHECKS    by name, in the order in which they run
RAW       what this version has no method for, of the check that runs
"""

import contextlib
import json
import sys
import threading
import time
import traceback
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any

import openai

FACTS: dict[str, Any] = json.loads(sys.argv[1])
MODEL = FACTS["model"]
PATIENCE = 30.0  # seconds for what takes well under one
ENDED = ("completed", "failed", "expired", "cancelled")

CHECKS: dict[str, Callable[[], None]] = {}
RAW: list[str] = []

client = openai.OpenAI(api_key=FACTS["key"], base_url=f"{FACTS['url']}/v1")


def check(name: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def keep(function: Callable[[], None]) -> Callable[[], None]:
        CHECKS[name] = function
        return function

    return keep


def raw(what: str) -> None:
    """Send a request without the SDK, which in this version has no method for it."""
    if what not in RAW:
        RAW.append(what)


def same(got: object, wanted: object) -> None:
    assert got == wanted, f"got {got!r:.600}, wanted {wanted!r:.600}"


def through(kind: str, name: str, **more: Any) -> openai.OpenAI:
    """Return a client whose requests go through the front, under a name."""
    return openai.OpenAI(**{"api_key": FACTS["key"], "base_url": f"{FACTS['front']}/{kind}/{name}/v1", **more})


def told(path: str) -> Any:
    """Return what the front has recorded."""
    with urllib.request.urlopen(f"{FACTS['front']}/{path}", timeout=10) as answer:
        return json.load(answer)


def until(holds: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    ends = time.monotonic() + seconds
    pause = threading.Event()
    while not (found := holds()):
        assert time.monotonic() < ends, f"{what}: not within {seconds:g} s"
        pause.wait(0.05)
    return found


def raised(wanted: type[Exception], call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Return the error that a call raises; it must be of exactly this class."""
    try:
        answer = call(*arguments, **named)
    except wanted as error:
        same(type(error), wanted)
        return error
    raise AssertionError(f"got {answer!r:.300}, wanted {wanted.__name__}")


def facts_of(error: Any) -> tuple[Any, ...]:
    assert error.request_id, "no request id"
    return (error.status_code, error.type, error.code, error.param)


def fresh(word: str) -> str:
    return f"{word}-{uuid.uuid4().hex[:12]}"


def input_file(lines: list[dict[str, Any]]) -> str:
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    return client.files.create(file=("input.jsonl", content), purpose="batch").id


def ended(batch: Any) -> Any:
    def look() -> Any:
        now = client.batches.retrieve(batch.id)
        return now if now.status in ENDED else None

    return until(look, f"the end of {batch.id}")


def lines_of(file_id: str | None) -> dict[str, dict[str, Any]]:
    assert file_id, "there is no file"
    lines = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    found = {line["custom_id"]: line for line in lines}
    same(len(found), len(lines))
    return found


def run_checks(version: str) -> None:
    """Print the version under test, then the outcome of each check, one JSON object a line."""
    print(json.dumps({"sdk": version}), flush=True)
    for name, function in CHECKS.items():
        RAW.clear()
        try:
            with contextlib.redirect_stdout(sys.stderr):  # some libraries print
                function()
            detail = ""
        except Exception:  # noqa: BLE001 (any exception is a check that failed, and is reported as one)
            detail = traceback.format_exc()
        print(json.dumps({"check": name, "ok": not detail, "detail": detail, "raw": list(RAW)}), flush=True)
