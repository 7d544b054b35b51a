"""A server that speaks OpenAI's HTTP API: the engine of the chaos runs, and their oracle.

    python -m tests.support.stub_engine --port 0 --log prompts.log [--delay-ms 1] [--models stub-model,other]

With `--models '*'` it takes any name and has no list of models. The model CANARY answers in a voice of its own, and
BROKEN fails at every request.

Every prompt is one JSON string on a line of the log, written before the answer leaves, so the log holds all
that was ever asked. Of texts that are embedded together (an ingestion's, a search's) it has a mark each.
Answers are those of `tests.support.fake_engine`; a prompt with a magic word breaks the server in that way. The answer
to one with STAMP begins with the moment at which it was asked, by the clock that all processes of a machine share. A
stream whose prompt has FLOOD sends large events without end; one with TRICKLE and a number sends so many, five a
second. The first line of standard output is the server's URL.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from aiohttp import web

from tests.support.fake_engine import CUT, SLOW_SECONDS, VOICE, events, magic_of, prompt_of, reply
from workers.engines.port import Answer, refusal, unknown_model
from workers.engines.wire import wants_usage

HUGE_BYTES = 100 << 20
RETRY_AFTER_SECONDS = 1
MARK = "#"
STAMP = "!stamp"
FLOOD, _FLOOD_BYTES = "!flood", 16_384  # of one event
TRICKLE, _TRICKLE_SECONDS = "!trickle", 0.2  # between two events
CANARY, BROKEN = "canary", "broken"
ROOT = Path(__file__).parents[2]


class PromptLog:
    """Appends lines: all that came in one turn of the loop in one write, awaited before the answers."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o644)
        self._lines: list[bytes] = []
        self._waiting: list[asyncio.Future[None]] = []

    async def add(self, *prompts: str) -> None:
        loop = asyncio.get_running_loop()
        if not self._lines:
            loop.call_soon(self._write)
        written = loop.create_future()
        self._lines += map(msgspec.json.encode, prompts)
        self._waiting.append(written)
        await written

    def _write(self) -> None:
        os.write(self._file, b"\n".join(self._lines) + b"\n")
        for written in self._waiting:
            if not written.done():  # its client may have hung up
                written.set_result(None)
        self._lines.clear()
        self._waiting.clear()


def prompts(log: Path) -> list[str]:
    """Every prompt the server was asked, oldest first."""
    return [msgspec.json.decode(line, type=str) for line in log.read_bytes().splitlines()] if log.exists() else []


def text_mark(text: str, dimensions: object = None) -> str:
    """Return how the log names one text of several; vectors of another length have another name."""
    told = text if dimensions is None else f"{dimensions} {text}"
    return f"{MARK}{sha256(told.encode()).hexdigest()[:16]}"


def _asked(path: str, body: dict[str, object], prompt: str) -> list[str]:
    texts = body.get("input")
    if path == "/v1/embeddings" and isinstance(texts, list) and texts and isinstance(texts[0], str):
        return [text_mark(text, body.get("dimensions")) for text in texts]
    return [prompt]


def stamped(answer: Answer, asked: float) -> Answer:
    """Mark an answer, so that it differs from any other answer to the same prompt."""
    return replace(answer, body=answer.body.replace(b'"echo ', b'"%.6f echo ' % asked))


class Stub:
    def __init__(self, log: PromptLog, models: tuple[str, ...], delay: float) -> None:
        self._log, self._models, self._delay = log, models, delay
        self._tries: Counter[str] = Counter()
        self._magic: dict[str, Callable[[web.BaseRequest, str], Awaitable[web.StreamResponse | None]]] = {
            "!reset": _reset,
            "!hang": _hang,
            "!500": _status(500),
            "!503": _status(503),
            "!429": _status(429),
            "!html": _html,
            "!huge": _huge,
            "!crash": _crash,
            "!flaky2": self._flaky,
            "!slow": _slow,
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "GET":
            return self._get(request.path)
        try:
            body = msgspec.json.decode(await request.content.read(), type=dict)
        except msgspec.DecodeError:
            return _response(refusal(400, "The body is not a JSON object."))
        if body.get("model") not in self._models and "*" not in self._models:
            return _response(unknown_model(str(body.get("model"))))
        return await self._answer(request, body, prompt_of(request.path, body))

    async def _answer(self, request: web.BaseRequest, body: dict[str, object], prompt: str) -> web.StreamResponse:
        asked = time.monotonic()
        await self._log.add(*_asked(request.path, body, prompt))
        if self._delay:
            await asyncio.sleep(self._delay)
        if body["model"] == BROKEN:
            return _response(refusal(500, "This model fails at every request.", code="engine_error"))
        word = magic_of(prompt)
        broken = await self._magic[word](request, prompt) if word in self._magic else None
        if broken:
            return broken
        if body.get("stream") and (FLOOD in prompt or TRICKLE in prompt):
            return await _long_stream(request, body, prompt)
        voice = CANARY if body["model"] == CANARY else VOICE
        answer = _without_refusal(reply(request.path, body, prompt, voice))
        if STAMP in prompt:
            answer = stamped(answer, asked)
        return await _stream(request, body, answer, cut=word == CUT) if body.get("stream") else _response(answer)

    def _get(self, path: str) -> web.Response:
        if path != "/v1/models" or self._models == ("*",):
            return _response(refusal(404, f"Unknown request URL: {path}"))
        cards = [{"id": name, "object": "model", "created": 0, "owned_by": "stub"} for name in self._models]
        return _response(Answer(200, msgspec.json.encode({"object": "list", "data": cards})))

    async def _flaky(self, request: web.BaseRequest, prompt: str) -> web.StreamResponse | None:
        self._tries[prompt] += 1
        return await _reset(request, prompt) if self._tries[prompt] <= 2 else None


def _without_refusal(answer: Answer) -> Answer:
    """Return an answer without the field `refusal` where it is null, as most servers send it."""
    return replace(answer, body=answer.body.replace(b',"refusal":null', b""))


def _response(answer: Answer, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=answer.body, status=answer.status, content_type="application/json", headers=headers)


async def _stream(request: web.BaseRequest, body: dict[str, Any], answer: Answer, *, cut: bool) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    for number, event in enumerate(events(msgspec.json.decode(answer.body), usage=wants_usage(body))):
        if event.get("usage") is None:  # as vLLM's server: what is not said is not there
            event.pop("usage", None)
        name = b"event: %b\n" % event["type"].encode() if "type" in event else b""
        await response.write(b"%bdata: %b\n\n" % (name, msgspec.json.encode(event)))
        if cut and number == 1:
            await response.write_eof()
            return response
    if request.path != "/v1/responses":
        await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


async def _long_stream(request: web.BaseRequest, body: dict[str, Any], prompt: str) -> web.StreamResponse:
    """Send a chat's chunks: large ones until the client hangs up (FLOOD), or as many as the prompt says (TRICKLE)."""
    flood = FLOOD in prompt
    count = None if flood else int(prompt.partition(TRICKLE)[2].split()[0])
    word = "a" * _FLOOD_BYTES if flood else "word "
    choice: dict[str, Any] = {"index": 0, "delta": {"content": word}, "logprobs": None, "finish_reason": None}
    chunk = {"id": "chatcmpl-long", "object": "chat.completion.chunk", "created": 0, "model": body["model"]}
    event = b"data: %b\n\n" % msgspec.json.encode({**chunk, "choices": [choice]})
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    while count is None or count > 0:
        await response.write(event)
        await asyncio.sleep(0 if flood else _TRICKLE_SECONDS)
        count = count and count - 1
    last = {**chunk, "choices": [{**choice, "delta": {}, "finish_reason": "stop"}]}
    await response.write(b"data: %b\n\ndata: [DONE]\n\n" % msgspec.json.encode(last))
    await response.write_eof()
    return response


async def _reset(request: web.BaseRequest, _: str) -> web.StreamResponse:
    if request.transport:
        request.transport.abort()
    return web.Response()


async def _hang(_: web.BaseRequest, __: str) -> None:
    await asyncio.Event().wait()


async def _slow(_: web.BaseRequest, __: str) -> None:
    await asyncio.sleep(SLOW_SECONDS)


def _status(status: int) -> Callable[[web.BaseRequest, str], Awaitable[web.StreamResponse]]:
    headers = {} if status == 500 else {"Retry-After": str(RETRY_AFTER_SECONDS)}

    async def answer(_: web.BaseRequest, __: str) -> web.StreamResponse:
        return _response(refusal(status, f"The stub answers {status}, as it was asked to."), headers)

    return answer


async def _html(_: web.BaseRequest, __: str) -> web.StreamResponse:
    return web.Response(text="<html><body>It works!</body></html>", content_type="text/html")


async def _huge(request: web.BaseRequest, _: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(HUGE_BYTES)})
    await response.prepare(request)
    chunk = b" " * (1 << 20)
    try:
        for _chunk in range(HUGE_BYTES // len(chunk)):
            await response.write(chunk)
    except ConnectionError:  # the client has seen enough
        return response
    await response.write_eof()
    return response


async def _crash(_: web.BaseRequest, __: str) -> None:
    os._exit(66)


async def serve(port: int, stub: Stub) -> None:
    runner = web.ServerRunner(web.Server(stub.handle, access_log=None, handler_cancellation=True))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, backlog=1024)
    await site.start()
    sys.stdout.write(f"http://127.0.0.1:{runner.addresses[0][1]}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="A stub of OpenAI's HTTP API.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--models", default="stub-model")
    options = parser.parse_args()
    stub = Stub(PromptLog(options.log), tuple(options.models.split(",")), options.delay_ms / 1000)
    uvloop.run(serve(options.port, stub))


@contextmanager
def started(log: Path, *options: str) -> Iterator[tuple[str, int]]:
    """Run a stub server in a process for the block, and yield its URL and process id."""
    command = [sys.executable, "-m", "tests.support.stub_engine", "--log", str(log), *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield process.stdout.readline().strip(), process.pid
        finally:
            process.kill()


@contextmanager
def running(log: Path, *options: str) -> Iterator[str]:
    """Run a stub server in a process for the block, and yield its URL."""
    with started(log, *options) as (url, _):
        yield url


if __name__ == "__main__":
    main()
