"""Prompts that are longer than their model takes: they are cut where the client asks for it, and else refused.

    request ──▶ terms ── none ─────────────────────────────▶ engine ──▶ answer, or context_length_exceeded
                  └──▶ length ── fits ─────────────────────▶ engine
                         └── too long ──▶ route_long ──▶ another model's workers
                                     └──▶ strategy ── fits ──▶ engine ──▶ answer with `context`
                                                  └── not even what must stay: context_length_exceeded

Where the engine counts (vLLM in this process) a prompt is known to be too long before it is asked. Elsewhere the engine
is asked first, as the request is; its refusal is the measure, and estimates are for what is cut then, tighter each time
that it refuses.
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
    context_options_of,
    reserved,
    without_context_fields,
)
from jobs.requests.endpoints import RESPONSES
from workers.engines.port import Answer, Emit, Engine, Length, Request, Usage, refusal
from workers.engines.refusals import in_openais_words, is_too_long, limit_in, too_long
from workers.middleware.base import Ask, Middleware, add_usage, directly, retry_while_busy
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
    """`told` is the field; `echo` is of the request, what the engine was not told."""

    told: dict[str, Any] = field(default_factory=dict)
    echo: Mapping[str, Any] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)

    def answer(self, answer: Answer) -> Answer:
        usage = answer.usage + self.usage
        if answer.status != 200 or not answer.body or not (self.told or self.echo):
            return replace(answer, usage=usage)
        body = msgspec.json.decode(answer.body)
        return Answer(200, msgspec.json.encode(self._with_it(body)), usage)

    def emit(self, emit: Emit) -> Emit:
        """Of a chat the first chunk says it, of a response each event that has the response."""
        if not (self.told or self.echo):
            return emit
        first = True

        async def told(chunk: bytes) -> None:
            nonlocal first
            event = msgspec.json.decode(chunk)
            if isinstance(event, dict) and "response" in event:
                event["response"] = self._with_it(event["response"])
            elif isinstance(event, dict) and "choices" in event:
                event = self._with_it(event) if first else self._with_usage(event)
                first = False
            await emit(msgspec.json.encode(event))

        return told

    def _with_it(self, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        theirs = body.get(FIELD)
        told = {**(theirs if isinstance(theirs, dict) else {}), **self.told}
        return self._with_usage(body) | dict(self.echo) | ({FIELD: told} if told else {})

    def _with_usage(self, body: dict[str, Any]) -> dict[str, Any]:
        shown = body.get("usage")
        if not isinstance(shown, dict) or not self.usage.total_tokens:
            return body
        return body | {"usage": add_usage(shown, self.usage)}


#: None where the engine cannot put the request into tokens. Raises what engines raise.
Measure = Callable[[Request], Awaitable[Length | None]]
#: Of a budget that is an estimate: the whole and then less, or, where nobody knows the limit, half and half again.
_KNOWN: Final = (1.0, 0.8, 0.64, 0.5)
_DOUBT: Final = 150  # percent of a budget that what must stay may have
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
    """Other workers, or other models of this one. Raises EngineBusy where nobody can answer now."""

    async def route(self, request: Request, emit: Emit | None) -> Answer | None:
        """The answer of the model that the request names; None if that is one of this worker's own."""

    async def piece_bytes(self, model: str | None) -> int: ...

    async def embed(self, request: Request, model: str | None, texts: list[str]) -> Vectors | Answer: ...


class ContextWindow(Middleware):
    """`ask_named` asks for a model by the name that a client has for it."""

    def __init__(
        self, engine: Engine, measure: Measure, model_router: ModelRouting, ask_named: AskNamed = directly
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
        """The engine, as the request is."""
        body = without_context_fields(request.url, request.body)
        if body is not request.body:
            request = replace(request, body=body)
        asked = self.engine.answer(request) if emit is None else self.engine.stream(request, emit)
        answer = await asked
        return in_openais_words(request.url, answer) if request.url in PROMPT else answer

    async def answer_or_stream(self, request: Request, emit: Emit | None) -> Answer:
        """Whole, or its pieces to `emit`."""
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
    """One request that says what to do if it is too long."""

    window: ContextWindow
    sent: Request
    terms: ContextOptions
    history: History
    emit: Emit | None
    spent: Usage = field(default_factory=Usage)  # on summaries
    paid: bool = False  # whether others have done something for it
    auto: bool = False  # OpenAI's `truncation`

    def __post_init__(self) -> None:
        self.auto = self.sent.url == RESPONSES and self.sent.body.get("truncation") == "auto"
        if self.auto:
            self.history.body.pop("truncation")  # engines that know it cut tokens, whatever they are

    @property
    def _strategy(self) -> str:
        return self.terms.strategy or "truncation_auto"

    async def run(self) -> Answer:
        body = self.history.body
        try:
            length = await self._length(body)
            if length is None:  # the engine will say why when it is asked
                return await self._ask(body, ContextReport())
            if not length.exact and not self._capped(length):
                answer = await self._ask(body, ContextReport())
                if not is_too_long(answer):
                    return answer
                limit = limit_in(answer) or length.limit
                return await self._handled(replace(length, limit=limit))
            if length.limit is None or length.tokens > self._budget(length.limit):
                return await self._handled(length)
            return await self._ask(body, ContextReport())
        except SummaryFailed as error:
            return replace(error.answer, usage=self.spent)

    def _capped(self, length: Length) -> bool:
        return self.terms.max_tokens is not None and length.tokens > self.terms.max_tokens

    def _budget(self, limit: int) -> int:
        """Tokens of the prompt."""
        left = limit - reserved(self.history.body, limit)
        return left if self.terms.max_tokens is None else min(left, self.terms.max_tokens)

    async def _handled(self, length: Length) -> Answer:
        if self.terms.route_long is not None:
            return await self._routed(self.terms.route_long, length)
        for n, budget in enumerate(self._budgets(length)):
            fit = await self._cut(budget, length) if budget > 0 else None
            if fit is None and n == 0 and not length.exact:  # estimates are rather too high: let the engine judge it
                fit = await self._cut(budget * _DOUBT // 100, length)
            if isinstance(fit, Answer):
                return fit
            if fit is None:
                break
            answer = await retry_while_busy(partial(self._ask, *fit), self._paid)
            if length.exact or not is_too_long(answer):
                return answer
        refused = too_long(self.sent.url, length.limit, length.tokens, f"'{self._strategy}' cannot make it fit.")
        return replace(refused, usage=self.spent)

    def _budgets(self, length: Length) -> Iterator[int]:
        known = length.limit is not None or self.terms.max_tokens is not None
        limit = length.limit or (self.terms.max_tokens or length.tokens) + reserved(self.history.body, length.tokens)
        whole = self._budget(limit)
        shares = (1.0,) if length.exact else _KNOWN if known else _UNKNOWN
        return (int(whole * share) for share in shares)

    async def _cut(self, budget: int, length: Length) -> tuple[Body, ContextReport] | Answer | None:
        """A body within the budget; None if there is none."""

        async def fits(body: Body) -> bool:
            """What the model's template does not take, with these messages left out, does not."""
            cut = await self._length(body)
            return cut is not None and cut.tokens <= budget

        found = await self._by_strategy(fits, budget, length)
        if found is None or isinstance(found, Answer):
            return found
        body, told = found
        window = await self._length(body)
        if window is None or window.tokens > budget:
            return None
        counts = {"prompt_tokens_before": length.tokens, "prompt_tokens": window.tokens}
        estimated = {} if length.exact else {"estimated": True}
        return body, ContextReport({"strategy": self._strategy, **told, **counts, **estimated}, usage=self.spent)

    async def _by_strategy(self, fits: Fits, budget: int, length: Length) -> Cut | Answer | None:
        name, history, terms = self._strategy, self.history, self.terms
        if name in _CUTTING:
            return await _CUTTING[name](history, terms, fits)
        if name == "memory":
            most = await self.window.model_router.piece_bytes(terms.embedding_model)
            return await memory(history, terms, fits, self._embed, most)
        return await self._summarized(fits, budget, length.limit or budget)

    async def _embed(self, texts: Sequence[str]) -> Vectors | Answer:
        found = await self.window.model_router.embed(self.sent, self.terms.embedding_model, list(texts))
        self.paid = True
        return found

    async def _summarized(self, fits: Fits, budget: int, limit: int) -> Cut | None:
        request = replace(self.sent, body=self.history.body)
        summaries = Summaries(request, self.terms, self._summary, self._count, budget, limit)
        return await summaries.summarize(self.history, fits)

    async def _summary(self, request: Request) -> Answer:
        answer = await retry_while_busy(partial(self.window.engine.answer, request), self._paid)
        self.paid, self.spent = True, self.spent + answer.usage
        return answer

    def _paid(self) -> Usage | None:
        return self.spent if self.paid else None

    async def _routed(self, model: str, length: Length) -> Answer:
        """To a model that takes more; if it is too long there too, the strategy is that worker's to follow."""
        terms = {name: value for name, value in self.sent.body[FIELD].items() if name != "route_long"}
        body = {name: value for name, value in self.sent.body.items() if name != FIELD} | {"model": model}
        body |= {FIELD: terms} if terms.get("strategy") else {}
        told = {"routed_from": self.sent.body.get("model"), "routed_to": model, "prompt_tokens_before": length.tokens}
        shown = ContextReport(told if length.exact else {**told, "estimated": True})
        emit = shown.emit(self.emit) if self.emit else None
        request = replace(self.sent, body=body, adapter=None)
        answer = await self.window.model_router.route(request, emit)
        if answer is None:
            answer = await self.window.ask_named(request, emit, self.window.answer_or_stream)
        return shown.answer(answer)

    async def _ask(self, body: Body, shown: ContextReport) -> Answer:
        if self.auto:
            shown = replace(shown, echo={"truncation": "auto"})
        emit = shown.emit(self.emit) if self.emit else None
        return shown.answer(await self.window.ask(replace(self.sent, body=body), emit))

    async def _length(self, body: Body) -> Length | None:
        return await self.window.measure(replace(self.sent, body=body))

    async def _count(self, request: Request) -> int:
        """Of a request for a summary. Raises Failed."""
        length = await self.window.measure(request)
        if length is None:
            message = "The model takes no chat that asks for a summary."
            raise SummaryFailed(refusal(400, message, param="context.strategy", code="context_summary_failed"))
        return length.tokens
