"""Shorten prompts that exceed their model's context if the client asks for it with `context` or `truncation`.

    request ──▶ options ── none ───────────────────────────▶ engine ──▶ answer, or context_length_exceeded
                  └──▶ length ── fits ─────────────────────▶ engine
                         └── too long ──▶ route_long ──▶ another model's workers
                                     └──▶ strategy ── fits ──▶ engine ──▶ answer with `context`
                                                  └── the rest is still too long: context_length_exceeded

An engine that counts exactly (vLLM in this process) tells before the request whether a prompt is too long. Any other
engine gets the unchanged request first. If it refuses, the prompt is cut by estimates, tighter after each refusal.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Protocol

import msgspec

from jobs.errors import InvalidRequest
from jobs.inference.context_options import (
    FIELD,
    PROMPT,
    ContextOptions,
    answer_reserve,
    context_options_of,
    drop_context_fields,
)
from jobs.requests.endpoints import RESPONSES
from workers.engines.port import Answer, Emit, Engine, Length, Request, Usage, refusal
from workers.engines.refusals import is_too_long, limit_in, too_long, translate_refusal
from workers.middleware.base import Ask, Middleware, add_usage, ask_model, retry_while_busy
from workers.middleware.context_strategies import (
    Body,
    Cut,
    Fits,
    Vectors,
    key_facts,
    memory,
    priority,
    rotate,
    sliding_window,
    truncate_middle,
    truncation_auto,
)
from workers.middleware.history import History
from workers.middleware.summaries import Summaries, SummaryFailed


@dataclass(frozen=True, slots=True)
class ContextReport:
    """The report to a client on how its prompt was shortened.

    `details` is the field `context`. `echo` holds fields of the request that the engine did not get. `usage` is of
    summaries.
    """

    details: dict[str, Any] = field(default_factory=dict)
    echo: Mapping[str, Any] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)

    def answer(self, answer: Answer) -> Answer:
        """Return `answer` with the report in its body and the usage of summaries added."""
        usage = answer.usage + self.usage
        if answer.status != 200 or not answer.body or not (self.details or self.echo):
            return replace(answer, usage=usage)
        body = msgspec.json.decode(answer.body)
        return Answer(200, msgspec.json.encode(self._add_report(body)), usage)

    def emit(self, emit: Emit) -> Emit:
        """Return an `emit` that adds the report: to the first chunk of a chat, or to each event with a response."""
        if not (self.details or self.echo):
            return emit
        first = True

        async def emit_with_report(chunk: bytes) -> None:
            nonlocal first
            event = msgspec.json.decode(chunk)
            if isinstance(event, dict) and "response" in event:
                event["response"] = self._add_report(event["response"])
            elif isinstance(event, dict) and "choices" in event:
                event = self._add_report(event) if first else self._add_usage(event)
                first = False
            await emit(msgspec.json.encode(event))

        return emit_with_report

    def _add_report(self, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        theirs = body.get(FIELD)
        details = {**(theirs if isinstance(theirs, dict) else {}), **self.details}
        return self._add_usage(body) | dict(self.echo) | ({FIELD: details} if details else {})

    def _add_usage(self, body: dict[str, Any]) -> dict[str, Any]:
        shown = body.get("usage")
        if not isinstance(shown, dict) or not self.usage.total_tokens:
            return body
        return body | {"usage": add_usage(shown, self.usage)}


#: Returns the length of a prompt, or None if the engine cannot tokenize the request. Raises what engines raise.
Measure = Callable[[Request], Awaitable[Length | None]]
#: Shares of an estimated budget to try, one after the other: with a known limit, and with an unknown one.
_KNOWN: Final = (1.0, 0.8, 0.64, 0.5)
_DOUBT: Final = 150  # percent of an estimated budget that the first cut may use
_UNKNOWN: Final = (0.5, 0.25, 0.125, 0.06)
_CUTTING: Final[dict[str, Callable[[History, ContextOptions, Fits], Awaitable[Cut | None]]]] = {
    "truncate_middle": truncate_middle,
    "sliding_window": sliding_window,
    "rotate": rotate,
    "priority": priority,
    "key_facts": key_facts,
    "truncation_auto": truncation_auto,
}


AskNamed = Callable[[Request, Emit | None, Ask], Awaitable[Answer]]


class ModelRouting(Protocol):
    """Access to other workers and to other models of this worker. Raises EngineBusy if none can answer now."""

    async def route(self, request: Request, emit: Emit | None) -> Answer | Request:
        """Return the answer of the model that the request names; the request for it if this worker serves the model."""

    async def piece_bytes(self, model: str | None) -> int: ...

    async def embed(self, request: Request, model: str | None, texts: list[str]) -> Vectors | Answer: ...


class ContextWindow(Middleware):
    """Shorten prompts that are too long, as the request's `context` or `truncation` says.

    `measure` counts tokens; `model_router` reaches other models.
    """

    def __init__(
        self, engine: Engine, measure: Measure, model_router: ModelRouting, ask_named: AskNamed = ask_model
    ) -> None:
        super().__init__(engine)
        self.ask_named = ask_named
        self.measure = measure
        self.model_router = model_router

    def concerns(self, request: Request) -> bool:
        return request.url in PROMPT

    async def handle(self, request: Request) -> Answer:
        return await self.answer_or_stream(request, None)

    async def handle_stream(self, request: Request, emit: Emit) -> Answer:
        return await self.answer_or_stream(request, emit)

    async def ask(self, request: Request, emit: Emit | None) -> Answer:
        """Send the request to the engine without the fields of the context window."""
        body = drop_context_fields(request.url, request.body)
        if body is not request.body:
            request = replace(request, body=body)
        pending = self.engine.answer(request) if emit is None else self.engine.stream(request, emit)
        answer = await pending
        return translate_refusal(request.url, answer) if request.url in PROMPT else answer

    async def answer_or_stream(self, request: Request, emit: Emit | None) -> Answer:
        """Answer the request; with `emit` as a stream."""
        try:
            terms = context_options_of(request.url, request.body)
        except InvalidRequest as error:
            return refusal(400, error.message, param=error.param, code=error.code)
        if terms is None:
            return await self.ask(request, emit)
        history = History.of(request.url, {name: value for name, value in request.body.items() if name != FIELD})
        if history is None:
            return await self.ask(request, emit)
        return await _LongPrompt(self, request, terms, history, emit).run()


@dataclass(slots=True)
class _LongPrompt:
    """One request with options for a prompt that is too long."""

    window: ContextWindow
    sent: Request
    terms: ContextOptions
    history: History
    emit: Emit | None
    spent: Usage = field(default_factory=Usage)  # by summaries
    paid: bool = False  # whether other requests were made for it
    auto: bool = False  # OpenAI's `truncation`

    def __post_init__(self) -> None:
        self.auto = self.sent.url == RESPONSES and self.sent.body.get("truncation") == "auto"
        if self.auto:
            self.history.body.pop("truncation")  # engines that know it would cut in the middle of messages

    @property
    def _strategy(self) -> str:
        return self.terms.strategy or "truncation_auto"

    async def run(self) -> Answer:
        body = self.history.body
        try:
            length = await self._length(body)
            if length is None:  # the engine will explain the refusal
                return await self._ask(body, ContextReport())
            if not length.exact and not self._exceeds_maximum(length):
                answer = await self._ask(body, ContextReport())
                if not is_too_long(answer):
                    return answer
                limit = limit_in(answer) or length.limit
                return await self._shorten(replace(length, limit=limit))
            if length.limit is None or length.tokens > self._budget(length.limit):
                return await self._shorten(length)
            return await self._ask(body, ContextReport())
        except SummaryFailed as error:
            return replace(error.answer, usage=self.spent)

    def _exceeds_maximum(self, length: Length) -> bool:
        return self.terms.max_tokens is not None and length.tokens > self.terms.max_tokens

    def _budget(self, limit: int) -> int:
        """Return how many tokens the prompt may have."""
        left = limit - answer_reserve(self.history.body, limit)
        return left if self.terms.max_tokens is None else min(left, self.terms.max_tokens)

    async def _shorten(self, length: Length) -> Answer:
        if self.terms.route_long is not None:
            return await self._route(self.terms.route_long, length)
        for n, budget in enumerate(self._budgets(length)):
            fit = await self._cut(budget, length) if budget > 0 else None
            if fit is None and n == 0 and not length.exact:  # estimates tend to be too high: let the engine decide
                fit = await self._cut(budget * _DOUBT // 100, length)
            if isinstance(fit, Answer):
                return fit
            if fit is None:
                break
            answer = await retry_while_busy(partial(self._ask, *fit), self._usage_so_far)
            if length.exact or not is_too_long(answer):
                return answer
        refused = too_long(self.sent.url, length.limit, length.tokens, f"'{self._strategy}' cannot make it fit.")
        return replace(refused, usage=self.spent)

    def _budgets(self, length: Length) -> Iterator[int]:
        known = length.limit is not None or self.terms.max_tokens is not None
        limit = length.limit or (self.terms.max_tokens or length.tokens) + answer_reserve(
            self.history.body, length.tokens
        )
        whole = self._budget(limit)
        shares = (1.0,) if length.exact else _KNOWN if known else _UNKNOWN
        return (int(whole * share) for share in shares)

    async def _cut(self, budget: int, length: Length) -> tuple[Body, ContextReport] | Answer | None:
        """Return a body within the budget and its report; None if there is none."""

        async def fits(body: Body) -> bool:
            """Return whether the body is within the budget; False if the chat template refuses it."""
            cut = await self._length(body)
            return cut is not None and cut.tokens <= budget

        result = await self._apply_strategy(fits, budget, length)
        if result is None or isinstance(result, Answer):
            return result
        body, details = result
        length_after = await self._length(body)
        if length_after is None or length_after.tokens > budget:
            return None
        counts = {"prompt_tokens_before": length.tokens, "prompt_tokens": length_after.tokens}
        estimated = {} if length.exact else {"estimated": True}
        return body, ContextReport({"strategy": self._strategy, **details, **counts, **estimated}, usage=self.spent)

    async def _apply_strategy(self, fits: Fits, budget: int, length: Length) -> Cut | Answer | None:
        name, history, terms = self._strategy, self.history, self.terms
        if name in _CUTTING:
            return await _CUTTING[name](history, terms, fits)
        if name == "memory":
            piece_bytes = await self.window.model_router.piece_bytes(terms.embedding_model)
            return await memory(history, terms, fits, self._embed, piece_bytes)
        return await self._summarize(fits, budget, length.limit or budget)

    async def _embed(self, texts: Sequence[str]) -> Vectors | Answer:
        vectors = await self.window.model_router.embed(self.sent, self.terms.embedding_model, list(texts))
        self.paid = True
        return vectors

    async def _summarize(self, fits: Fits, budget: int, limit: int) -> Cut | None:
        request = replace(self.sent, body=self.history.body)
        summaries = Summaries(request, self.terms, self._summary, self._count, budget, limit)
        return await summaries.summarize(self.history, fits)

    async def _summary(self, request: Request) -> Answer:
        answer = await retry_while_busy(partial(self.window.engine.answer, request), self._usage_so_far)
        self.paid, self.spent = True, self.spent + answer.usage
        return answer

    def _usage_so_far(self) -> Usage | None:
        return self.spent if self.paid else None

    async def _route(self, model: str, length: Length) -> Answer:
        """Send the request to a model with a longer context; its worker applies the strategy if needed."""
        terms = {name: value for name, value in self.sent.body[FIELD].items() if name != "route_long"}
        body = {name: value for name, value in self.sent.body.items() if name != FIELD} | {"model": model}
        body |= {FIELD: terms} if terms.get("strategy") else {}
        details = {
            "routed_from": self.sent.body.get("model"),
            "routed_to": model,
            "prompt_tokens_before": length.tokens,
        }
        shown = ContextReport(details if length.exact else {**details, "estimated": True})
        emit = shown.emit(self.emit) if self.emit else None
        request = replace(self.sent, body=body, adapter=None)
        answer = await self.window.model_router.route(request, emit)
        if isinstance(answer, Request):
            answer = await self.window.ask_named(answer, emit, self.window.answer_or_stream)
        return shown.answer(answer)

    async def _ask(self, body: Body, shown: ContextReport) -> Answer:
        if self.auto:
            shown = replace(shown, echo={"truncation": "auto"})
        emit = shown.emit(self.emit) if self.emit else None
        return shown.answer(await self.window.ask(replace(self.sent, body=body), emit))

    async def _length(self, body: Body) -> Length | None:
        return await self.window.measure(replace(self.sent, body=body))

    async def _count(self, request: Request) -> int:
        """Return the tokens of a request for a summary.

        Raises: SummaryFailed.
        """
        length = await self.window.measure(request)
        if length is None:
            message = "The model takes no chat that asks for a summary."
            raise SummaryFailed(refusal(400, message, param="context.strategy", code="context_summary_failed"))
        return length.tokens
