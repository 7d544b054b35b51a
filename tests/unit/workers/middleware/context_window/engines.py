"""An engine that counts words, and what stands around it."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from jobs.requests.endpoints import CHAT
from workers.engines.port import Answer, Emit, Length, Request, Usage, refusal
from workers.middleware.context_strategies import Vectors
from workers.middleware.context_window import ContextWindow

LIMIT = 100
MODEL = "m"


def words(value: Any) -> int:
    """Return a token for each word of a text."""
    if isinstance(value, str):
        return len(value.split())
    if isinstance(value, dict):
        return sum(map(words, value.values()))
    return sum(map(words, value)) if isinstance(value, list) else 0


def prompt_tokens(request: Request) -> int:
    body = request.body
    return 2 + words(body.get("messages")) + words(body.get("input")) + words(body.get("instructions"))


class Counting:
    """Refuses what is too long, and says nothing new; `says` may."""

    models = (MODEL,)

    def __init__(
        self, limit: int = LIMIT, *, counts: bool = True, says: Callable[[Request], Answer | str] | None = None
    ):
        self.limit, self._counts = limit, counts
        self._says = says or (lambda _: "fine")
        self.asked: list[Request] = []

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def length(self, request: Request) -> Length | None:
        if self._counts:
            return Length(prompt_tokens(request), self.limit)
        return Length(prompt_tokens(request) * 3 // 2, None, exact=False)

    async def answer(self, request: Request) -> Answer:
        self.asked.append(request)
        tokens = prompt_tokens(request)
        if tokens > self.limit:
            message = f"This model's maximum context length is {self.limit} tokens, and so on."
            return refusal(400, message, param="input_tokens")
        said = self._says(request)
        return said if isinstance(said, Answer) else _answer(request, said, tokens)

    async def stream(self, request: Request, emit: Emit) -> Answer:
        answer = await self.answer(request)
        if answer.status != 200:
            return answer
        body = msgspec.json.decode(answer.body)
        if request.url == CHAT:
            for word in ("one", "two"):
                choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
                await emit(msgspec.json.encode({"object": "chat.completion.chunk", "choices": [choice]}))
            await emit(msgspec.json.encode({"choices": [], "usage": body["usage"]}))
        else:
            await emit(msgspec.json.encode({"type": "response.created", "response": body | {"usage": None}}))
            await emit(msgspec.json.encode({"type": "response.completed", "response": body}))
        return Answer(200, b"")


def _answer(request: Request, said: str, tokens: int) -> Answer:
    if request.url == CHAT:
        message = {"role": "assistant", "content": said}
        usage = {"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": tokens + 1}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = {"object": "chat.completion", "model": request.body["model"], "choices": [choice], "usage": usage}
    else:
        usage = {"input_tokens": tokens, "output_tokens": 1, "total_tokens": tokens + 1}
        content = [{"type": "output_text", "text": said, "annotations": []}]
        item = {"type": "message", "role": "assistant", "content": content}
        body = {"object": "response", "status": "completed", "output": [item], "usage": usage, "truncation": "disabled"}
    return Answer(200, msgspec.json.encode(body), Usage(tokens, 0, 1))


class Nobody:
    """No other workers, and vectors that say how many of the question's words a text has."""

    def __init__(self, *, piece: int = 400) -> None:
        self.routed: list[Request] = []
        self.embedded: list[str] = []
        self.refuses: Answer | None = None
        self.answers: Answer | None = None
        self.piece = piece

    async def route(self, request: Request, emit: Emit | None) -> Answer | Request:
        self.routed.append(request)
        return self.answers or request

    async def piece_bytes(self, model: str | None) -> int:
        return self.piece

    async def embed(self, request: Request, model: str | None, texts: Sequence[str]) -> Vectors | Answer:
        if self.refuses:
            return self.refuses
        self.embedded += texts
        known = sorted({word for text in texts for word in text.casefold().split()})
        found = [np.array([word in text.casefold().split() for word in known], np.float32) for text in texts]
        return [one / max(float(np.linalg.norm(one)), 1e-9) for one in found]


def fitted(engine: Counting, others: Nobody | None = None) -> ContextWindow:
    return ContextWindow(engine, engine.length, others or Nobody())


def chat(messages: list[dict[str, Any]], context: Any = None, **fields: Any) -> Request:
    given = {"context": context} if context is not None else {}
    return Request(
        CHAT, {"model": MODEL, "messages": messages, "max_tokens": 10, **given, **fields}, "req_1", tenant="p"
    )


def said(answer: Answer) -> Any:
    return msgspec.json.decode(answer.body)
