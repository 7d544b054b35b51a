"""A real vLLM engine in a process of its own, as a worker has it: an event loop on a thread that is not the main one.

    test ──{"id", "do", …} on stdin──▶ host ──{"id", …} on its old stdout──▶ test

A process of its own, because importing vLLM under the tests' warnings-as-errors fails, and because a test kills it.
"""

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any

from workers.engines.port import Adapter, Request
from workers.engines.vllm.vllm_engine import VllmEngine

ROOT = Path(__file__).resolve().parents[2]
WATCHED = "NIGHTMILL_TEST_CONNECTIONS"
#: Until an engine has started: 70 s on two quiet cores, many times that beside other work.
START_SECONDS = 1000


class Host:
    """The test's end."""

    def __init__(self, model: Path, names: list[str], args: dict[str, Any], pids: Path, log: IO[bytes]) -> None:
        settings = json.dumps({"model": str(model), "names": names, "args": args, "pids": str(pids)})
        self.process = subprocess.Popen(
            ["nice", "-n", "5", sys.executable, "-m", "tests.support.vllm_host", settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT / "tests" / "support" / "watch"), WATCHED: f"{pids}.calls"},
            start_new_session=True,
        )
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, do: str, **fields: Any) -> tuple[int, "Future[dict[str, Any]]"]:
        number = time.monotonic_ns()
        future: Future[dict[str, Any]] = Future()
        self._waiting[number] = future
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"id": number, "do": do, **fields}) + "\n")
        self.process.stdin.flush()
        return number, future

    def call(self, do: str, timeout: float = 240, **fields: Any) -> dict[str, Any]:
        return self.send(do, **fields)[1].result(timeout)

    def start(self, **fields: Any) -> dict[str, Any]:
        """Start the engine; return how many seconds that took."""
        return self.call("start", timeout=START_SECONDS, **fields)

    def ask(self, url: str, **body: Any) -> dict[str, Any]:
        """`{"status", "body", "usage"}`, or `{"error", "message"}` where the adapter raised."""
        return self.call("answer", url=url, body=body)

    def stop(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(60)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = json.loads(line)
            self._waiting.pop(said["id"]).set_result(said)
        for future in self._waiting.values():
            future.set_exception(ConnectionError("the host is gone"))


class Loop:
    """The host's end: every request is a task on the engine's loop."""

    def __init__(self, engine: VllmEngine, say: Callable[[dict[str, Any]], None]) -> None:
        self._engine = engine
        self._say = say
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def serve(self, orders: "asyncio.Queue[dict[str, Any] | None]") -> None:
        while order := await orders.get():
            if order["do"] == "cancel":
                self._tasks[order["of"]].cancel()
            self._tasks[order["id"]] = asyncio.create_task(self._carry_out(order))
        await self._engine.close()

    async def _carry_out(self, order: dict[str, Any]) -> None:
        started = time.monotonic()
        try:
            said = await self._do(order)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  the test asserts on any
            said = {"error": type(error).__name__, "message": str(error)}
        self._say({"id": order["id"], "seconds": time.monotonic() - started, **said})

    async def _do(self, order: dict[str, Any]) -> dict[str, Any]:
        if order["do"] == "start":
            self._engine._patience = order.get("silence", self._engine._patience)
            await self._engine.start()
        if order["do"] == "answer":
            facts = {"tenant": order.get("tenant", ""), "adapter": _adapter(order)}
            answer = await self._engine.answer(Request(order["url"], order["body"], str(order["id"]), **facts))
            usage = answer.usage
            spent = [usage.input_tokens, usage.cached_tokens, usage.output_tokens, usage.reasoning_tokens]
            return {"status": answer.status, "body": json.loads(answer.body), "usage": spent}
        if order["do"] == "length":
            length = await self._engine.length(Request(order["url"], order["body"], str(order["id"])))
            return {"length": length and [length.tokens, length.limit, length.exact]}
        if order["do"] == "log":  # as its parsers do with what a model has said
            logging.getLogger("vllm.tool_parsers.odd").error("An odd call: %s", order["text"])
        if order["do"] == "stream":
            events: list[Any] = []

            async def emit(event: bytes) -> None:
                events.append(json.loads(event))

            request = Request(order["url"], order["body"], str(order["id"]), adapter=_adapter(order))
            answer = await self._engine.stream(request, emit)
            return {"status": answer.status, "body": json.loads(answer.body or b"null"), "events": events}
        return {}


def _adapter(order: dict[str, Any]) -> Adapter | None:
    name, folder = order.get("adapter") or (None, None)
    return Adapter(name, name, Path(folder)) if name else None


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM logs to stdout
    lock = threading.Lock()
    settings = json.loads(sys.argv[1])
    engine = VllmEngine(settings["model"], settings["names"], settings["args"], Path(settings["pids"]))

    def say(said: dict[str, Any]) -> None:
        with lock:
            out.write(json.dumps(said) + "\n")
            out.flush()

    loop = asyncio.new_event_loop()
    orders: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    thread = threading.Thread(target=loop.run_until_complete, args=(Loop(engine, say).serve(orders),))
    thread.start()
    for line in sys.stdin:
        loop.call_soon_threadsafe(orders.put_nowait, json.loads(line))
    loop.call_soon_threadsafe(orders.put_nowait, None)
    thread.join()


if __name__ == "__main__":
    main()
