"""`summarize`: the older turns become a summary, made by the same model.

    older turns ──▶ parts that fit ──┬──▶ engine ──▶ summary ──┐
                                     ├──▶ engine ──▶ summary ──┼──▶ together they fit: a note to the model
                                     └──▶ engine ──▶ summary ──┘    else they are the text of the next level

The parts of a level are asked at once and run as one batch in the engine; of a batch's line one by one. A part that
fails fails the request: nothing is left out without a word. A summary has at most a quarter of the context, so that
each level has fewer parts.
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
#: Tokens of a prompt on the model of the request.
Count = Callable[[Request], Awaitable[int]]

SUMMARY_TOKENS: Final = 256
AT_ONCE: Final = 16  # of one request that somebody waits for; the others of its level follow as these end
_SLACK: Final = 8  # tokens by which a text may be longer within another than alone
_LEAST_ROOM: Final = 16  # tokens: below this no summary is worth its name
_LEVELS: Final = 12
_ASKED: Final = (
    "Summarize this part of a conversation. Keep names, numbers, decisions and open questions. "
    "Say who said what. Write the summary and nothing else."
)
_NOTE: Final = "Summary of the earlier conversation:"


@dataclass(slots=True)
class SummaryCost:
    """What the summaries of one request have taken, besides tokens."""

    calls: int = 0
    levels: int = 0
    cut: int = 0  # summaries that came to their length before their end


class SummaryFailed(Exception):
    """A part has no summary."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class Summaries:
    """Of one request. `budget` is its prompt's, `limit` the model's whole context, in tokens."""

    def __init__(
        self, request: Request, terms: ContextOptions, ask: Ask, count: Count, budget: int, limit: int
    ) -> None:
        self._request, self._ask, self._count = request, ask, count
        self._budget, self._limit = budget, limit
        self._most = terms.summary_tokens or SUMMARY_TOKENS
        self._kept_turns = terms.kept_turns
        self.spent = SummaryCost()

    async def summarize(self, history: History, fits: Fits) -> Cut | None:
        """None where not even what must stay fits. Raises Failed, and what engines raise."""
        dropped = [n for turn in history.older(self._kept_turns) for n in turn]
        if not dropped:
            return None
        left = self._budget - await self._count(replace(self._request, body=history.noted(dropped, _NOTE, [""])))
        most = min(self._most, left - _SLACK, self._limit // 4)
        if most < _LEAST_ROOM:
            return None
        texts = [f"{history.speaker(n)}: {history.text(n)}" for n in dropped]
        while True:
            parts = await self._parts(texts, most)
            if not parts or self.spent.levels == _LEVELS:
                return None
            texts = await self._level(parts, most)
            body = history.noted(dropped, _NOTE, texts)
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

    async def _level(self, parts: Sequence[str], most: int) -> list[str]:
        self.spent.levels += 1
        # lines of a batch are counted, to be few while somebody waits: each asks no more than one thing at a time
        free = asyncio.Semaphore(AT_ONCE if self._request.job_id is None else 1)

        async def one(number: int, part: str) -> str:
            async with free:
                return await self._summary(number, part, most)

        return await run_all([one(number, part) for number, part in enumerate(parts)])

    async def _summary(self, number: int, part: str, most: int) -> str:
        asked = self._question(part, most, f"{self._request.request_id}-s{self.spent.levels}-{number}")
        answer = await self._ask(asked)
        self.spent.calls += 1
        if answer.status != 200:
            raise SummaryFailed(_failed(answer))
        choice = _choice(answer.body)
        text = (choice.message.content or "").strip() if choice and choice.message else ""
        if choice is None or not text:
            message = "A part of the conversation has no summary: the model said nothing."
            raise SummaryFailed(refusal(422, message, param="context.strategy", code="context_summary_failed"))
        self.spent.cut += choice.finish_reason == "length"
        return text

    def _question(self, part: str, most: int, request_id: str) -> Request:
        messages = [{"role": "system", "content": _ASKED}, {"role": "user", "content": part}]
        body = {"model": self._request.body["model"], "messages": messages, "max_tokens": most, "temperature": 0}
        return replace(self._request, url=CHAT, body=body, request_id=request_id)

    async def _parts(self, texts: Sequence[str], most: int) -> list[str]:
        """Texts put together as long as they fit; what does not fit alone is cut in two. Empty if nothing fits."""
        bare = await self._tokens("", most)
        room = self._limit - most - bare
        found: list[str] = []
        waiting = list(reversed(texts))
        begun, size = "", 0
        while waiting:
            text = waiting.pop()
            length = await self._tokens(text, most) - bare + 1
            if length > room:
                if len(text) < 2:
                    return []
                middle = _middle(text)
                waiting += [text[middle:], text[:middle]]
            elif begun and size + length > room:
                found.append(begun)
                begun, size = text, length
            else:
                begun, size = f"{begun}\n{text}" if begun else text, size + length
        return [*found, begun] if begun else found

    async def _tokens(self, part: str, most: int) -> int:
        return await self._count(self._question(part, most, self._request.request_id))


async def run_all(work: Sequence[Coroutine[Any, Any, str]]) -> list[str]:
    """At once. The first error ends the others, and so does a cancellation."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _middle(text: str) -> int:
    """Where to cut: at the last space before the middle, if there is one near."""
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


def _failed(answer: Answer) -> Answer:
    """The engine's words, under a code that says at what it failed."""
    try:
        said = msgspec.json.decode(answer.body)["error"]["message"]
    except (msgspec.MsgspecError, KeyError, TypeError):
        said = f"the engine answered {answer.status}."
    message = f"A part of the conversation has no summary: {said}"[:2000]
    return refusal(answer.status, message, param="context.strategy", code="context_summary_failed")
