"""The fake engine: deterministic answers without a model, and every way in which an engine can break.

    prompt ──sha256──▶ text, tokens, vectors            the same prompt always gets the same answer
    prompt with "!reset", "!hang", "!500" …             breaks in that way (MAGIC)
    prompt with "!cite"                                 a response to it names the first excerpt
    a last turn with "!tool"                            the first function of the request is called
    a request with an adapter                           the answer begins with the adapter's name instead of "echo"

The stub server of the tests gives the same answers over HTTP and breaks on the same words.
"""

import asyncio
import base64
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Any, Final

import msgspec

from jobs.requests.endpoints import BERTSCORE, LIKELIHOOD
from workers.engines import echo, probes
from workers.engines.adapter_slots import AdapterSlots
from workers.engines.port import (
    Adapter,
    AdapterRefused,
    Answer,
    Emit,
    EngineBusy,
    EngineDead,
    EngineFault,
    Passage,
    Request,
    Score,
    Usage,
    likelihood_answer,
    refusal,
    unknown_model,
)
from workers.engines.wire import wants_usage

MAGIC: Final = ("!reset", "!hang", "!500", "!503", "!429", "!html", "!huge", "!crash", "!flaky2", "!slow", "!cut")
CITE: Final = "!cite"
TOOL: Final = "!tool"
CUT: Final = "!cut"  # a stream ends too early; an answer that is not a stream is complete
CREATED: Final = 1_700_000_000  # answers are the same at any time
DIMENSIONS: Final = 8
SLOW_SECONDS: Final = 2.0

VOICE: Final = "echo"  # the first word of every text, in place of an adapter's name

Body = dict[str, Any]
Form = Callable[[Body, str, bytes, str], Answer]
Fault = Callable[[Request], BaseException | Answer | None]


def magic_of(prompt: str) -> str | None:
    """Return the magic word of a prompt; empty where it has none."""
    if "!" not in prompt:
        return None
    return next((word for word in MAGIC if word in prompt), None)


def prompt_of(url: str, body: Body) -> str:
    """Return the texts of a request as one string."""
    if url == "/v1/chat/completions":
        return _text(body.get("messages"))
    if url == "/v1/rerank":
        return _text(body.get("query"))
    return _text(body.get("prompt" if url == "/v1/completions" else "input"))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    if isinstance(value, dict):
        return _text(value.get("content") if "content" in value else value.get("text"))
    return "" if value is None else str(value)


def reply(url: str, body: Body, prompt: str, voice: str = VOICE) -> Answer:
    """Return the answer to `prompt`, whose text begins with `voice`; a 404 for a path that no model has."""
    form = FORMS.get(url)
    if form is None:
        return refusal(404, f"Unknown request URL: {url}", code="unknown_url")
    return form(body, prompt, sha256(prompt.encode()).digest(), voice)


def _function_call(body: Body, turns: Any) -> Body | None:
    """Return a call of the request's first function when the last turn is a user's that asks for one."""
    last = turns if isinstance(turns, str) else turns[-1] if turns and turns[-1].get("role") == "user" else None
    if TOOL not in _text(last):
        return None
    functions = (tool.get("function", tool) for tool in body.get("tools") or () if tool.get("type") == "function")
    if (function := next(functions, None)) is None:
        return None
    properties = (function.get("parameters") or {}).get("properties", {})
    arguments = {name: _example_of(schema) for name, schema in properties.items()}
    return {"name": function["name"], "arguments": msgspec.json.encode(arguments).decode()}


def _example_of(schema: Body) -> Any:
    """Return a value of the schema's type; an enumeration's first value."""
    examples = {"integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}, "null": None}
    return schema["enum"][0] if schema.get("enum") else examples.get(schema.get("type", ""), "echo")


def usage_of(prompt: str, digest: bytes) -> Usage:
    tokens = len(prompt) // 4 + 1
    output = 1 + digest[0] % 16
    return Usage(tokens, tokens * digest[1] // 512, output, digest[2] % output)


def _chat(body: Body, prompt: str, digest: bytes, voice: str) -> Answer:
    message: Body = {"role": "assistant", "content": f"{voice} {digest.hex()[:16]}", "refusal": None}
    call = _function_call(body, body.get("messages"))
    if call:
        tool_call = {"id": f"call_{digest.hex()[:24]}", "type": "function", "function": call}
        message |= {"content": None, "tool_calls": [tool_call]}
    choice = {"message": message, "logprobs": None, "finish_reason": "tool_calls" if call else "stop"}
    return _completion("chat.completion", "chatcmpl", [choice] * (body.get("n") or 1), body, prompt, digest)


def _text_completion(body: Body, prompt: str, digest: bytes, voice: str) -> Answer:
    text = f"{voice} {digest.hex()[:16]}"
    if echo.scores_prompt("/v1/completions", body):
        choices = [_echoed(prompt, text, body["logprobs"]) for prompt in echo.prompts_of(body.get("prompt"))]
    else:
        choices = [{"text": text, "logprobs": None, "finish_reason": "stop"}] * (body.get("n") or 1)
    return _completion("text_completion", "cmpl", choices, body, prompt, digest)


def _echoed(prompt: Any, text: str, count: int) -> Body:
    """Return a prompt and the first word after it; each token but the first has a tenth of a nat for each letter.

    The tokens are words with the space before them, or the ids of the prompt.
    """
    is_text = isinstance(prompt, str)
    tokens = [*(_words(prompt) if is_text else map(str, prompt)), f" {_words(text)[0]}"]
    logprobs = [None, *(-len(token.strip()) / 10 for token in tokens[1:])]
    starts = [sum(map(len, tokens[:n])) for n in range(len(tokens))]
    top = [None if value is None else {token: value} for token, value in zip(tokens, logprobs, strict=True)]
    return {
        "text": "".join(tokens),
        "logprobs": {
            "tokens": tokens,
            "token_logprobs": logprobs,
            "top_logprobs": top if count else [None] * len(tokens),
            "text_offset": starts,
        },
        "finish_reason": "length",
    }


def _completion(kind: str, prefix: str, choices: list[Body], body: Body, prompt: str, digest: bytes) -> Answer:
    usage = usage_of(prompt, digest)
    answer = {
        "id": f"{prefix}-{digest.hex()[:24]}",
        "object": kind,
        "created": CREATED,
        "model": body.get("model"),
        "choices": [{**choice, "index": index} for index, choice in enumerate(choices)],
        "usage": {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.total_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        },
    }
    return Answer(200, msgspec.json.encode(answer), usage)


def events(answer: Body, *, usage: bool) -> Iterator[Body]:
    """Return an answer as the events of its stream."""
    return _response_events(answer) if answer["object"] == "response" else _chunks(answer, usage=usage)


def _chunks(answer: Body, *, usage: bool) -> Iterator[Body]:
    """Yield the chunks of a chat or completion: a word each, then the finish reason, then the usage."""
    chat = answer["object"] == "chat.completion"
    head = {"id": answer["id"], "created": answer["created"], "model": answer["model"]}
    head |= {"object": "chat.completion.chunk" if chat else "text_completion"} | ({"usage": None} if usage else {})
    for choice in answer["choices"]:
        for delta in _deltas(choice["message"]) if chat else ({"text": word} for word in _words(choice["text"])):
            part = {"delta": delta} if chat else delta
            yield {**head, "choices": [{"index": choice["index"], **part, "logprobs": None, "finish_reason": None}]}
        last = {"index": choice["index"], "logprobs": None, "finish_reason": choice["finish_reason"]}
        yield {**head, "choices": [{**last, **({"delta": {}} if chat else {"text": ""})}]}
    if usage:
        yield {**head, "choices": [], "usage": answer["usage"]}


def _deltas(message: Body) -> Iterator[Body]:
    """Yield the parts of a chat's message: a word each, or the function's name and then its arguments."""
    if calls := message.get("tool_calls"):
        [call] = calls
        named = {**call, "function": {**call["function"], "arguments": ""}}
        yield {"role": "assistant", "content": None, "tool_calls": [{"index": 0, **named}]}
        yield {"tool_calls": [{"index": 0, "function": {"arguments": call["function"]["arguments"]}}]}
        return
    for n, word in enumerate(_words(message["content"])):
        yield {**({"role": "assistant"} if n == 0 else {}), "content": word}


def _response_events(answer: Body) -> Iterator[Body]:
    """Yield the events of a response: its beginning, each item with its parts, its end."""
    [item] = answer["output"]
    begun = {**answer, "status": "in_progress", "output": [], "usage": None}
    empty: Body = {**item, "status": "in_progress", **({"content": []} if "content" in item else {"arguments": ""})}
    events: list[Body] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": empty},
        *(_text_events(item) if "content" in item else _call_events(item)),
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": answer},
    ]
    return ({**event, "sequence_number": number} for number, event in enumerate(events))


def _text_events(item: Body) -> Iterator[Body]:
    [part] = item["content"]
    location = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    yield {"type": "response.content_part.added", **location, "part": {**part, "text": ""}}
    for word in _words(part["text"]):
        yield {"type": "response.output_text.delta", **location, "delta": word, "logprobs": []}
    yield {"type": "response.output_text.done", **location, "text": part["text"], "logprobs": []}
    yield {"type": "response.content_part.done", **location, "part": part}


def _call_events(item: Body) -> Iterator[Body]:
    location = {"item_id": item["id"], "output_index": 0}
    kind = "response.function_call_arguments"
    yield {"type": f"{kind}.delta", **location, "delta": item["arguments"]}
    yield {"type": f"{kind}.done", **location, "name": item["name"], "arguments": item["arguments"]}


def _words(text: str) -> list[str]:
    first, *others = text.split(" ")
    return [first, *(f" {word}" for word in others)]


def _response(body: Body, prompt: str, digest: bytes, voice: str) -> Answer:
    usage, name = usage_of(prompt, digest), digest.hex()[:24]
    text = f"{voice} {digest.hex()[:16]}" + (" [1]" if CITE in prompt else "")
    content = {"type": "output_text", "text": text, "annotations": []}
    item = {"type": "message", "id": f"msg_{name}", "status": "completed", "role": "assistant", "content": [content]}
    if call := _function_call(body, body.get("input")):
        item = {"type": "function_call", "id": f"fc_{name}", "call_id": f"call_{name}", "status": "completed", **call}
    answer = {
        "id": f"resp_{name}",
        "object": "response",
        "created_at": CREATED,
        "status": "completed",
        "model": body.get("model"),
        "output": [item],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": usage.input_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.total_tokens,
        },
    }
    return Answer(200, msgspec.json.encode(answer), usage)


def _embeddings(body: Body, prompt: str, _digest: bytes, _voice: str) -> Answer:
    value = body.get("input")
    many = isinstance(value, list) and bool(value) and not isinstance(value[0], int)
    texts = [_text(item) for item in value] if many and isinstance(value, list) else [prompt]
    vectors = [vector_of(text, body.get("dimensions") or DIMENSIONS) for text in texts]
    if body.get("encoding_format") == "base64":
        shown: list[Any] = [base64.b64encode(struct.pack(f"<{len(v)}f", *v)).decode() for v in vectors]
    else:
        shown = vectors
    tokens = len(prompt) // 4 + 1
    answer = {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(shown)],
        "model": body.get("model"),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return Answer(200, msgspec.json.encode(answer), Usage(tokens))


def _rerank(body: Body, query: str, _digest: bytes, _voice: str) -> Answer:
    """Score each document by the share of the query's words that it has."""
    query_words = set(query.lower().split())
    texts = [_text(document) for document in body.get("documents") or ()]
    scores = [len(query_words & set(text.lower().split())) / len(query_words) if query_words else 0.0 for text in texts]
    best = sorted(range(len(texts)), key=lambda n: (-scores[n], n))[: body.get("top_n") or len(texts)]
    tokens = sum(len(query) + len(text) for text in texts) // 4 + 1
    answer = {
        "id": "rerank-fake",
        "model": body.get("model"),
        "results": [{"index": n, "relevance_score": scores[n], "document": {"text": texts[n]}} for n in best],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return Answer(200, msgspec.json.encode(answer), Usage(tokens))


def vector_of(text: str, dimensions: int) -> list[float]:
    """Return a bag of words as a vector: texts with words in common are near.

    The whole text is a word too, so that no two texts have the same vector.
    """
    words = [_word(word, dimensions) for word in (text, *text.lower().split())]
    raw = [sum(values) for values in zip(*words, strict=True)]
    norm = sum(value * value for value in raw) ** 0.5 or 1.0
    return [value / norm for value in raw]


def _word(word: str, dimensions: int) -> list[float]:
    stream = b"".join(sha256(b"%d:%s" % (i, word.encode())).digest() for i in range(-(-dimensions // 32)))
    return [byte - 127.5 for byte in stream[:dimensions]]


def _likelihood(body: Body, text: str, _digest: bytes, _voice: str) -> Answer:
    """Give each word a tenth of a nat for each of its letters."""
    first, *others = text.split() or [""]
    return likelihood_answer(str(body.get("model")), Score((len(first),), tuple(-len(word) / 10 for word in others)))


def _bertscore(body: Body, _prompt: str, _digest: bytes, _voice: str) -> Answer:
    """Match equal words."""
    text, reference = (set(value.split()) for value in body["input"])
    common = len(text & reference)
    precision, recall = common / (len(text) or 1), common / (len(reference) or 1)
    f1 = 2 * precision * recall / (precision + recall) if common else 0.0
    named = {"object": "bertscore", "model": body.get("model"), "layer": 1}
    return Answer(200, msgspec.json.encode({**named, "precision": precision, "recall": recall, "f1": f1}))


FORMS: Final[dict[str, Form]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _text_completion,
    "/v1/responses": _response,
    "/v1/embeddings": _embeddings,
    "/v1/rerank": _rerank,
    LIKELIHOOD: _likelihood,
    BERTSCORE: _bertscore,
}


class FakeEngine:
    """An engine without a model.

    `on_prompt` is called with each prompt before it is answered; `fault` may return an error or an answer in place of
    the usual one. The engine holds `adapters` adapters at once; `loads` are the names of the loaded ones, in order.
    Answers without an adapter begin with `voice`.
    """

    version = "fake-1"

    def __init__(
        self,
        models: tuple[str, ...] = ("fake-model",),
        *,
        delay: float = 0.0,
        timeout: float = 600.0,
        on_prompt: Callable[[str], object] | None = None,
        fault: Fault | None = None,
        adapters: int = 4,
        voice: str = VOICE,
    ) -> None:
        self.models, self.adapters, self._voice = models, adapters, voice
        self.starts = 0
        self.loads: list[str] = []
        self._slots = AdapterSlots(adapters, self._load, self._unload)
        self._delay, self._timeout, self._on_prompt, self._fault = delay, timeout, on_prompt, fault
        self._alive = False
        self._tries: Counter[str] = Counter()

    async def start(self) -> None:
        if not self._alive:
            self._alive = True
            self.starts += 1
            self._slots = AdapterSlots(self.adapters, self._load, self._unload)

    async def answer(self, request: Request) -> Answer:
        async with self._slots.running(request.adapter):
            return await self._answer(request)

    async def score(self, model: str, passages: Sequence[Passage], adapter: Adapter | None) -> list[Score]:
        """Return the bytes of a chat as its tokens, and numbers that depend on the adapter."""
        async with self._slots.running(adapter):
            return await self._score(passages, adapter)

    async def _score(self, passages: Sequence[Passage], adapter: Adapter | None) -> list[Score]:
        return [_score(passage, adapter) for passage in passages]

    async def _load(self, adapter: Adapter) -> None:
        await asyncio.sleep(self._delay)
        if not (adapter.folder / "adapter_config.json").is_file():
            raise AdapterRefused(f"The adapter {adapter.name} has no adapter_config.json.")
        await probes.check(adapter, self._score)
        self.loads.append(adapter.name)

    async def _unload(self, adapter: Adapter) -> None:
        """Forget nothing: a fake adapter is a name."""

    async def _answer(self, request: Request) -> Answer:
        if not self._alive:
            raise EngineDead("The fake engine is not running.")
        if request.body.get("model") not in self.models and "*" not in self.models:
            return unknown_model(str(request.body.get("model")))
        prompt = prompt_of(request.url, request.body)
        if self._on_prompt:
            self._on_prompt(prompt)
        life = self.starts
        await asyncio.sleep(self._delay)
        if not self._lives(life):
            raise EngineDead("The fake engine crashed with this request in flight.")
        fault = self._fault(request) if self._fault else None
        if isinstance(fault, BaseException):
            raise fault
        if fault is None and (word := magic_of(prompt)):
            await self._break(word, prompt)
        voice = request.adapter.name if request.adapter else self._voice
        return fault or reply(request.url, request.body, prompt, voice)

    async def stream(self, request: Request, emit: Emit) -> Answer:
        """Compute the whole answer first, then emit its words one by one."""
        answer = await self.answer(request)
        if answer.status != 200:
            return answer
        cut = magic_of(prompt_of(request.url, request.body)) == CUT
        for number, event in enumerate(events(msgspec.json.decode(answer.body), usage=wants_usage(request.body))):
            await emit(msgspec.json.encode(event))
            if cut and number == 1:
                raise EngineFault("the stream ended too early")
        return Answer(200, b"")

    async def close(self) -> None:
        self._alive = False

    def _lives(self, life: int) -> bool:
        return self._alive and self.starts == life

    async def _break(self, word: str, prompt: str) -> None:
        if word == CUT:
            return
        if word == "!slow":
            await asyncio.sleep(SLOW_SECONDS)
        elif word == "!hang":
            await asyncio.sleep(self._timeout)
            raise EngineFault("The engine gave no answer in time.")
        elif word == "!flaky2":
            self._tries[prompt] += 1
            if self._tries[prompt] <= 2:
                raise EngineFault("connection reset")
        else:
            self._alive = self._alive and word != "!crash"
            raise _error_of(word)


def _score(passage: Passage, adapter: Adapter | None) -> Score:
    text = "\n".join(_text(message) for message in passage.messages)
    weights = sha256((adapter.name if adapter else "").encode()).digest()
    logprobs = (-weights[n % len(weights)] / 255 for n, _ in enumerate(passage.continuation))
    return Score(tuple(text.encode()), tuple(logprobs))


def _error_of(word: str) -> Exception:
    if word == "!crash":
        return EngineDead("The fake engine crashed.")
    if word in {"!503", "!429"}:
        return EngineBusy(f"The engine answered {word[1:]}.", retry_after=1.0)
    if word == "!500":
        return EngineFault("The engine answered 500.", refusal(500, "The stub broke, as it was asked to."))
    return EngineFault({"!reset": "connection reset", "!html": "not JSON"}.get(word, "answer too large"))
