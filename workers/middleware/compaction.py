"""Replace compaction items of a conversation by their summaries, because engines do not know such items.

    user, user, compaction, user ──▶ user: earlier messages, the quoted summary, the new message

Some chat templates refuse two user messages in a row, so the messages around a summary become one. A model wrote the
summary, so it is quoted as data, like excerpts of files (see `quoting`).
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
    """Expand compaction items before the engine sees a conversation."""

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
    """Return the request with summaries in place of compaction items; a refusal if a summary was not made here."""
    shown: list[Any] = []
    user_items: list[Mapping[str, Any]] = []  # consecutive items of the user
    for n, item in enumerate(request.body["input"]):
        if compaction.is_compaction(item):
            try:
                summary = compaction.unpack(item.get(compaction.CONTENT))
            except ValueError as error:
                param = f"input[{n}]"
                return refusal(
                    400, f"Invalid '{param}': {error}", param=f"{param}.{compaction.CONTENT}", code="invalid_value"
                )
            user_items.append({"type": compaction.ITEM, "content": quoting.note(_NOTE, summary.splitlines()).rstrip()})
        elif isinstance(item, dict) and item.get("role") == "user":
            user_items.append(item)
        else:
            shown += [*_join_summaries(user_items), item]
            user_items = []
    return replace(request, body={**request.body, "input": [*shown, *_join_summaries(user_items)]})


def _join_summaries(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one user message if a summary is among `said`; otherwise the messages unchanged."""
    if not any(map(compaction.is_compaction, items)):
        return [dict(item) for item in items]
    parts = [part for item in items for part in _parts(item.get("content"))]
    texts = [part["text"] for part in parts if part.keys() == {"type", "text"} and isinstance(part["text"], str)]
    content: Any = "\n\n".join(texts) if len(texts) == len(parts) else parts
    last = items[-1]
    return [{"role": "user", "content": content} | ({PRIORITY: last[PRIORITY]} if PRIORITY in last else {})]


def _parts(content: Any) -> list[dict[str, Any]]:
    """Return the parts of a content; an engine refuses anything that is not a list of parts."""
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return content
    return [{"type": "input_text", "text": content}]
