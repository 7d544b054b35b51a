"""vLLM in this process: one base model, one engine, many requests in flight.

    start ──▶ running ──▶ answer … answer
      ▲          │
      └──────────┴── EngineCore died: each request in flight raises EngineDead; the next start() builds an engine

Everything runs on the event loop that first called `start`. No other code uses that loop: building the engine blocks it
for half a minute on a CPU. Requests that arrive meanwhile wait for the new engine.
"""

import asyncio
import importlib
import logging
import os
import re
import sys
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import cache, partial
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import Any, Final

import msgspec
import pydantic

from jobs.fleet.models_file import EngineKind
from jobs.inference.complete_answers import complete_response, status_of
from jobs.platform import processes
from jobs.requests.endpoints import LIKELIHOOD, RESPONSES
from jobs.requests.fields import OPENAI
from workers.engines import echo
from workers.engines.caps import objection
from workers.engines.documented import body_for_vllm, malformed_field, refuse_unknown, untranslated
from workers.engines.foreign_errors import ForeignCall
from workers.engines.port import (
    Adapter,
    AdapterRefused,
    Answer,
    Emit,
    EngineBusy,
    EngineDead,
    EngineFault,
    Length,
    Passage,
    Request,
    Score,
    likelihood_answer,
    refusal,
    unknown_model,
)
from workers.engines.vllm import leftovers, phases, silence, vllm_adapters
from workers.engines.vllm.vllm_serving import (
    BadEngineArgs,
    Unsupported,
    VllmServing,
    batch_limits,
    plain,
    plain_event,
    prepare_environment,
)
from workers.engines.wire import events_of_answer, usage_of, wants_usage

log = logging.getLogger(__name__)

# OpenAI allows several choices at temperature 0 and vLLM does not. vLLM raises lower temperatures to this value.
MIN_TEMPERATURE = 0.01
# The field that OpenAI names in an error about the prompt, by URL. vLLM names what it counts.
PROMPT_FIELD = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/responses": "input",
    "/v1/embeddings": "input",
    LIKELIHOOD: "input",
}
CONTEXT_PARAMETERS = frozenset({"input_tokens", "input_text"})
OPENAI_PARAMETER = {"response_id": "previous_response_id"}
_DYING_SECONDS = 30
DETAILS = re.compile(r" \(parameter=.*\)$", re.DOTALL)  # how vLLM's validation errors end
REQUEST_ID_PREFIX = {"/v1/responses": "resp_"}  # vLLM puts chatcmpl- and cmpl- before the others itself


class VllmEngine:
    """An engine of vLLM for one base model.

    `model` is a folder or a name on the hub, `names` are its names in requests, `args` are vLLM's arguments. The file
    `pids` stores the process ids of the engine's children for the next process. An engine that answers no ping and
    makes no progress for `patience` seconds is killed, see `silence`.
    """

    def __init__(
        self,
        model: str,
        names: Sequence[str],
        args: Mapping[str, Any],
        pids: Path,
        *,
        patience: float = 300.0,
    ) -> None:
        self._model = model
        self._names = tuple(names)
        self._args = dict(args)
        self._pids = pids
        self._patience = patience
        self._events = 0  # of answers, so far
        self._serving: VllmServing | None = None
        self._likelihoods: vllm_adapters.Likelihoods | None = None
        self._watch: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._step = ""
        self._phases = pids.with_suffix(".phase")

    @property
    def models(self) -> tuple[str, ...]:
        return self._names

    @property
    def version(self) -> str:
        return vllm_adapters.engine_version()

    @property
    def adapters(self) -> int:
        return vllm_adapters.limit_of(self._args)

    @property
    def phase(self) -> str:
        return phases.read(self._phases) or self._step

    def batch_limits(self, while_interactive: int) -> tuple[int, int] | None:
        """Return the limit of batch lines while an interactive client waits, and while none does.

        None before the engine has started, and on a GPU if `while_interactive` is 0.
        """
        return batch_limits(self._args, while_interactive) if self._serving is not None else None

    async def start(self) -> None:
        async with self._starting:
            if self._serving is not None and not self._serving.dead:
                return
            await self._stop()
            prepare_environment(self._model, self._args, self._patience)
            keep_texts_out()
            self._step = phases.IMPORTING
            phases.record(self._phases, os.environ, self._model, self._args)
            await asyncio.to_thread(importlib.import_module, "vllm.entrypoints.launchers.api_server.entry")
            self._step = phases.STARTING
            with ForeignCall(BadEngineArgs) as opening, leftovers.record_processes(self._pids):
                serving = await VllmServing.open(self._model, self._names, self._args)
            if opening.error is not None:  # vLLM raises any error here: for a driver, a full GPU, a broken checkpoint
                log.error("engine_start_failed", exc_info=opening.error, extra={"model": self._model})
                raise EngineDead(f"vLLM could not start {self._model}: {opening.error}") from opening.error
            serving.slots = vllm_adapters.slots(serving, self._names[0], self.adapters)
            self._serving, self._likelihoods = serving, vllm_adapters.likelihoods(serving, self.adapters)
            self._watch = asyncio.create_task(self._watching(serving))

    async def close(self) -> None:
        async with self._starting:
            await self._stop()

    async def answer(self, request: Request) -> Answer:
        if request.url == LIKELIHOOD:
            return await self._likelihood(request)
        if refused := self._objection(request):
            return refused
        await self.start()
        if echo.scores_prompt(request.url, request.body):
            return await self._echo(request)
        return await self._ask(request, self._body(request))

    async def stream(self, request: Request, emit: Emit) -> Answer:
        if refused := self._objection(request):
            return refused
        await self.start()
        if echo.scores_prompt(request.url, request.body):
            return await self._stream_whole(request, emit)
        body = self._body(request) | {"stream": True}
        if options := request.body.get("stream_options"):
            body["stream_options"] = options
        return await self._ask(request, body, emit)

    async def length(self, request: Request) -> Length | None:
        """Return the length of a prompt as vLLM renders it.

        None where vLLM cannot render it, and will refuse the request.
        """
        if self._objection(request):
            return None
        await self.start()
        assert self._serving is not None
        with ForeignCall() as counting:
            return Length(*await self._serving.length(request.url, self._body(replace(request, adapter=None))))
        error = type(counting.error).__name__  # the error's text may quote the prompt
        log.info("prompt_not_counted", extra={"error": error})
        return None

    async def score(self, model: str, passages: Sequence[Passage], adapter: Adapter | None) -> list[Score]:
        """Return the log-probabilities that the engine gives to continuations of chats."""
        await self.start()
        serving = self._serving
        assert serving is not None
        work = partial(vllm_adapters.score, serving.state, model, passages, adapter)
        return await serving.slots.run_exclusively(adapter, work)

    async def _likelihood(self, request: Request) -> Answer:
        """Return how likely the text `input` is to the model, computed with nothing but other texts beside it."""
        name, text = str(request.body.get("model")), str(request.body["input"])
        if name not in self._names:
            return unknown_model(name)
        if not text:
            return likelihood_answer(name, Score((), ()))
        await self.start()
        serving, likelihoods = self._serving, self._likelihoods
        assert serving is not None
        assert likelihoods is not None
        with ForeignCall(AdapterRefused, EngineFault) as scoring:
            score = await likelihoods.score_text(name, text, request.adapter)
        return _judge(serving, request, scoring.error) if scoring.error else likelihood_answer(name, score)

    async def _echo(self, request: Request) -> Answer:
        """Answer a completion with the log-probabilities of its prompts, one prompt after the other."""
        body, answers = self._body(request), []
        ask = self._ask_alone if vllm_adapters.scores_alone(self.adapters) else self._ask
        for prompt in echo.prompts_of(body.get("prompt")):
            answer = await ask(request, body | {"prompt": prompt})
            if answer.status != HTTPStatus.OK:
                return answer
            answers.append(answer)
        return echo.join_answers(answers)

    async def _stream_whole(self, request: Request, emit: Emit) -> Answer:
        answer = await self._echo(request)
        if answer.status != HTTPStatus.OK:
            return answer
        for event in events_of_answer(request.url, answer.body, request.body):
            await emit(event)
        return Answer(HTTPStatus.OK, b"", answer.usage)

    def _objection(self, request: Request) -> Answer | None:
        if request.url not in OPENAI:
            message = f"Unknown URL {request.url}; an engine serves {', '.join(OPENAI)}."
            return refusal(HTTPStatus.NOT_FOUND, message, param="url")
        name = request.body.get("model")
        if refused := objection(request.url, request.body):
            return refused
        if refused := refuse_unknown(EngineKind.VLLM, request):
            return refused
        if wrong := untranslated(request.url, request.body) or malformed_field(request.url, request.body):
            return refusal(HTTPStatus.BAD_REQUEST, wrong[1], param=wrong[0])
        return None if name in self._names else unknown_model(str(name))

    async def _ask(self, request: Request, body: dict[str, Any], emit: Emit | None = None) -> Answer:
        serving = self._serving
        assert serving is not None
        async with serving.slots.running(request.adapter):
            return await self._ask_serving(serving, request, body, emit)

    async def _ask_alone(self, request: Request, body: dict[str, Any]) -> Answer:
        serving = self._serving
        assert serving is not None
        return await serving.slots.run_exclusively(
            request.adapter, partial(self._ask_serving, serving, request, body, None)
        )

    async def _ask_serving(
        self, serving: VllmServing, request: Request, body: dict[str, Any], emit: Emit | None
    ) -> Answer:
        task = asyncio.current_task()
        assert task is not None
        cancels = task.cancelling()
        with ForeignCall() as call:
            result = await serving.ask(request.url, body)
            if emit is not None and isinstance(result, AsyncGenerator):
                return await self._pass_events(serving, request, result, emit)
        if task.cancelling() > cancels:  # vLLM swallows the cancellation and answers "Client disconnected"
            raise asyncio.CancelledError
        answer = _judge(serving, request, call.error or result)
        self._events += answer.status == HTTPStatus.OK  # a refusal may come from this process
        return answer

    async def _pass_events(
        self, serving: VllmServing, request: Request, events: AsyncGenerator[Any], emit: Emit
    ) -> Answer:
        """Emit the events of a stream. After the first event, vLLM reports an error as an event too."""
        usage = wants_usage(request.body)
        async with aclosing(events):
            async for chunk in events:
                self._events += 1
                for event in _events(chunk):
                    shown = plain_event(event, usage=usage)
                    _name_base(shown, request)
                    if isinstance(shown.get("response"), dict):
                        _name_base(shown["response"], request)
                        shown["response"] = complete_response(shown["response"], request.body, status=status_of(shown))
                    await emit(msgspec.json.encode(shown))
        if serving.dead:
            raise EngineDead("the engine died while it answered")
        return Answer(HTTPStatus.OK, b"")

    def _body(self, request: Request) -> dict[str, Any]:
        body = body_for_vllm(request.url, request.body)
        if body.get("temperature") == 0 and (body.get("n") or 1) != 1:
            body["temperature"] = MIN_TEMPERATURE
        if request.tenant:
            body["cache_salt"] = request.tenant
        if request.adapter:
            body["model"] = request.adapter.name  # vLLM's name of the base with the adapter
        prefix = REQUEST_ID_PREFIX.get(request.url, "")
        return body | {"stream": False, "priority": request.priority, "request_id": prefix + request.request_id}

    async def _watching(self, serving: VllmServing) -> None:
        ending = partial(self._end_silent, serving)
        await silence.watch(serving.ping, lambda: serving.dead, self._patience, ending, self._progress)

    def _progress(self) -> silence.EngineProgress:
        pids = [process.pid for process in leftovers.read(self._pids)]
        return silence.EngineProgress(self._events, sum(map(processes.cpu_seconds, pids)))

    async def _end_silent(self, serving: VllmServing) -> None:
        """Kill the processes of a silent engine; if they do not die, end this process, which is restarted."""
        await asyncio.to_thread(leftovers.kill, self._pids)
        for _ in range(_DYING_SECONDS):
            if serving.dead:
                return
            await asyncio.sleep(1)
        log.critical("engine_cannot_be_ended", extra={"model": self._model})
        os._exit(os.EX_SOFTWARE)  # the supervisor restarts this process, with backoff

    async def _stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._serving is not None:
            serving, self._serving = self._serving, None
            await serving.close()
        if killed := leftovers.kill(self._pids):
            log.warning("engine_leftovers_killed", extra={"pids": [process.pid for process in killed]})


def _name_base(shown: dict[str, Any], request: Request) -> None:
    """Replace the adapter's name in an answer or event by the model's name in the request."""
    if request.adapter and "model" in shown:
        shown["model"] = request.body["model"]


def _events(chunk: Any) -> Iterator[dict[str, Any]]:
    """Yield the events of vLLM's stream: server-sent events are text, events of responses are models."""
    if not isinstance(chunk, str):
        yield chunk.model_dump(mode="json", by_alias=True)
        return
    for line in chunk.splitlines():
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data != "[DONE]":
            yield msgspec.json.decode(data)


def _judge(serving: VllmServing, request: Request, result: Any) -> Answer:
    """Translate vLLM's answer, refusal or failure for the port."""
    from vllm.entrypoints.serve import create_error_response
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse
    from vllm.v1.engine.exceptions import EngineDeadError

    failed = isinstance(result, Exception | ErrorResponse)
    if isinstance(result, EngineDeadError) or (failed and serving.dead):
        raise EngineDead(f"the engine died: {result}")
    if isinstance(result, pydantic.ValidationError):
        return _invalid(result)
    if isinstance(result, Unsupported):
        return refusal(HTTPStatus.BAD_REQUEST, f"This model does not serve {request.url}.", param="model")
    if failed:
        error = (create_error_response(result) if isinstance(result, Exception) else result).error
        return _refusal_of(request.url, error.code, DETAILS.sub("", error.message), error.param)
    answer = plain(result)
    _name_base(answer, request)
    body = msgspec.json.encode(complete_response(answer, request.body) if request.url == RESPONSES else answer)
    return Answer(HTTPStatus.OK, body, usage_of(body))


def _refusal_of(url: str, status: int, message: str, param: str | None) -> Answer:
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        raise EngineBusy(message)
    if status == HTTPStatus.NOT_IMPLEMENTED:  # this model or engine lacks a field or a feature
        return refusal(HTTPStatus.BAD_REQUEST, message, param=param)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise EngineFault(message, refusal(status, message))
    if param in CONTEXT_PARAMETERS:
        return refusal(status, message, code="context_length_exceeded", param=PROMPT_FIELD[url])
    return refusal(status, message, param=OPENAI_PARAMETER.get(str(param), param))


def _invalid(error: pydantic.ValidationError) -> Answer:
    """Return the refusal for the first error in a body, with the field that OpenAI would name."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = [str(part) for part in first["loc"]]
    message = f"{'.'.join(where)}: {first['msg']}" if where else first["msg"]
    return refusal(HTTPStatus.BAD_REQUEST, message, param=where[0] if where else None)


# Keep the texts of clients and models out of vLLM's logs. Its templates and parsers log what they cannot handle: as an
# argument, as an error's text, as a traceback that quotes a line of an answer. Such a record keeps only what is in
# vLLM's code: the location, the message without its arguments, and the class of the error. Only this process needs
# that, because the engine's children have token ids and no texts.

QUOTING: Final = (
    "vllm.entrypoints.generate", "vllm.entrypoints.openai", "vllm.entrypoints.pooling", "vllm.entrypoints.serve",
    "vllm.multimodal", "vllm.parser", "vllm.reasoning", "vllm.renderers", "vllm.tokenizers", "vllm.tool_parsers",
    "vllm.v1.engine.detokenizer", "vllm.v1.structured_output",
)  # fmt: skip
WITHHELD: Final = "the message is withheld, because it may quote a text"


class TextlessRecords:
    """A factory of log records without texts. Filters of a logger would not apply to the loggers below it."""

    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self._make = make

    def __call__(
        self, name: str, level: int, path: str, line: int, message: Any, args: Any, error: Any, *rest: Any, **more: Any
    ) -> logging.LogRecord:
        if str(name).startswith(QUOTING):
            text = message if _is_constant(message, path, line) else WITHHELD
            message, args, error = f"{text} ({error[0].__name__})" if error and error[0] else text, (), None
        return self._make(name, level, path, line, message, args, error, *rest, **more)


@cache
def keep_texts_out() -> None:
    """Install the factory for the rest of this process, which loads vLLM."""
    logging.setLogRecordFactory(TextlessRecords(logging.getLogRecordFactory()))


def _is_constant(message: Any, path: str, line: int) -> bool:
    """Return whether the message is a constant in the code that logs it, and no f-string."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and (frame.f_code.co_filename, frame.f_lineno) != (path, line):
        frame = frame.f_back
    return frame is not None and message in frame.f_code.co_consts
