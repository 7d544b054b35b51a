"""The strategy `summarize`: the same model summarizes the older turns.

    older turns ──▶ parts that fit ──┬──▶ engine ──▶ summary ──┐
                                     ├──▶ engine ──▶ summary ──┼──▶ if they fit together: a note to the model
                                     └──▶ engine ──▶ summary ──┘    otherwise: the text of the next level

The parts of a level are sent at once and run as one batch in the engine; those of a batch's line one by one. If a part
fails, the request fails: nothing is dropped silently. A summary has at most a quarter of the context, so that each
level has fewer parts.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from jobs.inference.context_options import ContextOptions
from jobs.requests.endpoints import CHAT
from workers.engines.port import Answer, Request, refusal
from workers.middleware.context_strategies import Cut, Fits
from workers.middleware.history import History

Ask = Callable[[Request], Awaitable[Answer]]
#: Counts the tokens of a prompt for the model of the request.
Count = Callable[[Request], Awaitable[int]]

SUMMARY_TOKENS: Final = 256
AT_ONCE: Final = 16  # parts of one interactive request; the others of the level follow as these end
_SLACK: Final = 8  # tokens by which a text may be longer inside another than alone
_MIN_ROOM: Final = 16  # tokens: a summary below this is useless
_LEVELS: Final = 12
_ASKED: Final = (
    "Summarize this part of a conversation. Keep names, numbers, decisions and open questions. "
    "Say who said what. Write the summary and nothing else."
)
_NOTE: Final = "Summary of the earlier conversation:"


@dataclass(slots=True)
class SummaryCost:
    """The cost of the summaries of one request, besides tokens."""

    calls: int = 0
    levels: int = 0
    cut: int = 0  # summaries that reached their maximum length


class SummaryFailed(Exception):
    """The engine gave no summary of a part; `answer` is the error for the client."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class Summaries:
    """Summaries for one request. `budget` limits its prompt, `limit` is the model's context, both in tokens."""

    def __init__(
        self, request: Request, options: ContextOptions, ask: Ask, count: Count, budget: int, limit: int
    ) -> None:
        self._request, self._ask, self._count = request, ask, count
        self._budget, self._limit = budget, limit
        self._most = options.summary_tokens or SUMMARY_TOKENS
        self._kept_turns = options.kept_turns
        self.spent = SummaryCost()

    async def summarize(self, history: History, fits: Fits) -> Cut | None:
        """Return a body with a summary that fits; None if not even the rest fits.

        Raises: SummaryFailed, and what engines raise.
        """
        dropped = [n for turn in history.older_turns(self._kept_turns) for n in turn]
        if not dropped:
            return None
        left = self._budget - await self._count(replace(self._request, body=history.add_note(dropped, _NOTE, [""])))
        max_tokens = min(self._most, left - _SLACK, self._limit // 4)
        if max_tokens < _MIN_ROOM:
            return None
        texts = [f"{history.speaker(n)}: {history.text(n)}" for n in dropped]
        while True:
            parts = await self._parts(texts, max_tokens)
            if not parts or self.spent.levels == _LEVELS:
                return None
            texts = await self._level(parts, max_tokens)
            body = history.add_note(dropped, _NOTE, texts)
            if await fits(body):
                return body, self._report(len(dropped))
            if len(parts) == 1:
                return None

    def _report(self, dropped: int) -> dict[str, Any]:
        spent = self.spent
        return {
            "dropped_messages": dropped, "summary_requests": spent.calls, "summary_levels": spent.levels,
            "summaries_cut": spent.cut,
        }  # fmt: skip

    async def _level(self, parts: Sequence[str], max_tokens: int) -> list[str]:
        self.spent.levels += 1
        # lines of a batch are throttled while interactive clients wait, so each sends one request at a time
        free = asyncio.Semaphore(AT_ONCE if self._request.job_id is None else 1)

        async def summarize_part(number: int, part: str) -> str:
            async with free:
                return await self._summary(number, part, max_tokens)

        return await run_all([summarize_part(number, part) for number, part in enumerate(parts)])

    async def _summary(self, number: int, part: str, max_tokens: int) -> str:
        request = self._question(part, max_tokens, f"{self._request.request_id}-s{self.spent.levels}-{number}")
        answer = await self._ask(request)
        self.spent.calls += 1
        if answer.status != 200:
            raise SummaryFailed(_failure_answer(answer))
        choice = _choice(answer.body)
        text = (choice.message.content or "").strip() if choice and choice.message else ""
        if choice is None or not text:
            message = "A part of the conversation has no summary: the model said nothing."
            raise SummaryFailed(refusal(422, message, param="context.strategy", code="context_summary_failed"))
        self.spent.cut += choice.finish_reason == "length"
        return text

    def _question(self, part: str, max_tokens: int, request_id: str) -> Request:
        messages = [{"role": "system", "content": _ASKED}, {"role": "user", "content": part}]
        body = {"model": self._request.body["model"], "messages": messages, "max_tokens": max_tokens, "temperature": 0}
        return replace(self._request, url=CHAT, body=body, request_id=request_id)

    async def _parts(self, texts: Sequence[str], max_tokens: int) -> list[str]:
        """Join texts as long as they fit, and split those that do not fit alone.

        Return an empty list if nothing fits.
        """
        overhead = await self._tokens("", max_tokens)
        room = self._limit - max_tokens - overhead
        parts: list[str] = []
        waiting = list(reversed(texts))
        begun, size = "", 0
        while waiting:
            text = waiting.pop()
            length = await self._tokens(text, max_tokens) - overhead + 1
            if length > room:
                if len(text) < 2:
                    return []
                middle = _middle(text)
                waiting += [text[middle:], text[:middle]]
            elif begun and size + length > room:
                parts.append(begun)
                begun, size = text, length
            else:
                begun, size = f"{begun}\n{text}" if begun else text, size + length
        return [*parts, begun] if begun else parts

    async def _tokens(self, part: str, max_tokens: int) -> int:
        return await self._count(self._question(part, max_tokens, self._request.request_id))


async def run_all(work: Sequence[Coroutine[Any, Any, str]]) -> list[str]:
    """Run all at once. The first error, or a cancellation, ends the others."""
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _middle(text: str) -> int:
    """Return where to cut: at a space shortly before the middle, or in the middle."""
    middle = len(text) // 2
    space = text.rfind(" ", middle // 2, middle)
    return space + 1 if space >= 0 else middle


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    finish_reason: str | None = None


class _Chat(msgspec.Struct):
    choices: list[_Choice]


def _choice(body: bytes) -> _Choice | None:
    try:
        return next(iter(msgspec.json.decode(body, type=_Chat).choices), None)
    except msgspec.MsgspecError:
        return None


def _failure_answer(answer: Answer) -> Answer:
    """Return the engine's error under the code `context_summary_failed`."""
    try:
        reason = msgspec.json.decode(answer.body)["error"]["message"]
    except (msgspec.MsgspecError, KeyError, TypeError):
        reason = f"the engine answered {answer.status}."
    message = f"A part of the conversation has no summary: {reason}"[:2000]
    return refusal(answer.status, message, param="context.strategy", code="context_summary_failed")
