"""Conversations that were compacted: an engine is shown the summary, and never an item that only we know.

    user, user, compaction, user ──▶ user: what was said, the summary, quoted, what is said now

Some templates take no second message of a user's, so that all of them around it are one. The summary was written by a
model: it is data, as what is found in files (see `quoting`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from jobs.inference import compaction
from jobs.inference.context_options import PRIORITY
from jobs.requests.endpoints import RESPONSES
from workers.engines.port import Answer, Emit, Request, refusal
from workers.middleware import quoting
from workers.middleware.base import Middleware

_NOTE: Final = "Summary of the conversation until here:"


class CompactionMiddleware(Middleware):
    """An engine whose conversations may have been compacted."""

    def concerns(self, request: Request) -> bool:
        items = request.body.get("input") if request.url == RESPONSES else None
        return isinstance(items, list) and any(map(compaction.is_compaction, items))

    async def handle(self, request: Request) -> Answer:
        shown = expand_compactions(request)
        return shown if isinstance(shown, Answer) else await self.engine.answer(shown)

    async def handle_stream(self, request: Request, emit: Emit) -> Answer:
        shown = expand_compactions(request)
        return shown if isinstance(shown, Answer) else await self.engine.stream(shown, emit)


def expand_compactions(request: Request) -> Request | Answer:
    """As an engine is asked it; a refusal where a summary is none of ours."""
    shown: list[Any] = []
    said: list[Mapping[str, Any]] = []  # by a user, one after the other
    for n, item in enumerate(request.body["input"]):
        if compaction.is_compaction(item):
            try:
                summary = compaction.unpacked(item.get(compaction.CONTENT))
            except ValueError as error:
                param = f"input[{n}]"
                return refusal(
                    400, f"Invalid '{param}': {error}", param=f"{param}.{compaction.CONTENT}", code="invalid_value"
                )
            said.append({"type": compaction.ITEM, "content": quoting.note(_NOTE, summary.splitlines()).rstrip()})
        elif isinstance(item, dict) and item.get("role") == "user":
            said.append(item)
        else:
            shown += [*_together(said), item]
            said = []
    return replace(request, body={**request.body, "input": [*shown, *_together(said)]})


def _together(said: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One message, where a summary is among them."""
    if not any(map(compaction.is_compaction, said)):
        return [dict(one) for one in said]
    parts = [part for one in said for part in _parts(one.get("content"))]
    texts = [part["text"] for part in parts if part.keys() == {"type", "text"} and isinstance(part["text"], str)]
    content: Any = "\n\n".join(texts) if len(texts) == len(parts) else parts
    last = said[-1]
    return [{"role": "user", "content": content} | ({PRIORITY: last[PRIORITY]} if PRIORITY in last else {})]


def _parts(content: Any) -> list[dict[str, Any]]:
    """What is no list of parts an engine is to refuse."""
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return content
    return [{"type": "input_text", "text": content}]
