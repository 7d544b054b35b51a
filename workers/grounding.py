"""Responses with the tool `file_search`: what the question finds in vector stores is put before the model.

    request ──▶ the last thing the user said ──▶ searched, by a worker that has the store's embedding model
            ──▶ excerpts, numbered, into the instructions ──▶ engine ──▶ answer, with its citations

It always searches: whether to is not left to the model, which may be a small one. Engines know nothing of it: it stands
before them for waiting clients, for lines of batches and in the background alike. What the client is shown has the
tools and instructions that it sent, a `file_search_call` before the message, and citations in it.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from jobs.conditions import check_filter
from jobs.errors import InvalidRequest
from jobs.searches import Found, Search
from workers.citations import citations
from workers.engines.port import Answer, Emit, Engine, Request, refusal

URL: Final = "/v1/responses"
TOOL: Final = "file_search"
RESULTS: Final = "file_search_call.results"
#: Excerpts unless the tool says how many. OpenAI puts up to 20 before models that can hold them.
MOST_RESULTS: Final = 5
MOST_STORES: Final = 8
MOST_WEIGHT: Final = 1_000_000
_LONGEST_QUERY: Final = 4096
_ECHOED: Final = ("instructions", "tools", "tool_choice")  # what an engine repeats of its request
_FOUND: Final = (
    "Answer from the excerpts of files below. Name the excerpt that a statement comes from by its number, like [1]. "
    "If they do not hold the answer, say so."
)
_NOTHING: Final = "The files were searched, and nothing was found that belongs to the question. Say so."


class Hybrid(msgspec.Struct, frozen=True):
    embedding_weight: float = 1.0
    text_weight: float = 1.0


class Ranking(msgspec.Struct, frozen=True):
    ranker: str = "auto"
    score_threshold: float = 0.0
    hybrid_search: Hybrid | None = None


class FileSearch(msgspec.Struct, frozen=True):
    """OpenAI's tool."""

    vector_store_ids: list[str]
    max_num_results: int | None = None
    filters: dict[str, Any] | None = None
    ranking_options: Ranking | None = None

    def search(self, store_id: str, query: str) -> Search:
        """What a worker is asked; the store's model is filled in by whoever knows it."""
        options = self.ranking_options or Ranking()
        hybrid = options.hybrid_search or Hybrid()
        return Search(
            model="",
            store_id=store_id,
            queries=(query,),
            limit=self.max_num_results or MOST_RESULTS,
            filters=self.filters,
            vector_weight=hybrid.embedding_weight,
            text_weight=hybrid.text_weight,
            threshold=options.score_threshold,
        )


#: Searches one store for a request; an Answer is a refusal. Raises EngineBusy.
Searcher = Callable[[Request, Search], Awaitable[Sequence[Found] | Answer]]
#: How many characters of excerpts a model is shown.
Budget = Callable[[str], int]


class Grounded:
    """An engine whose responses may search files."""

    def __init__(self, engine: Engine, search: Searcher, budget: Budget) -> None:
        self._engine = engine
        self._search = search
        self._budget = budget

    @property
    def models(self) -> tuple[str, ...]:
        return self._engine.models

    async def start(self) -> None:
        await self._engine.start()

    async def close(self) -> None:
        await self._engine.close()

    async def answer(self, request: Request) -> Answer:
        if not _searches(request):
            return await self._engine.answer(request)
        grounds = await self._ground(request)
        if isinstance(grounds, Answer):
            return grounds
        answer = await self._engine.answer(grounds.request)
        if answer.status != 200:
            return answer
        return replace(answer, body=msgspec.json.encode(grounds.shown(msgspec.json.decode(answer.body))))

    async def stream(self, request: Request, emit: Emit) -> Answer:
        if not _searches(request):
            return await self._engine.stream(request, emit)
        grounds = await self._ground(request)
        if isinstance(grounds, Answer):
            return grounds
        told = _Told(grounds, emit)
        return await self._engine.stream(grounds.request, told.event)

    async def _ground(self, request: Request) -> "Grounds | Answer":
        body = request.body
        try:
            tool = _tool(body)
        except (msgspec.ValidationError, InvalidRequest) as error:
            return refusal(400, f"Invalid tool 'file_search': {error}", param="tools", code="invalid_value")
        query = _query(body.get("input"))
        found: list[Found] = []
        for store_id in dict.fromkeys(tool.vector_store_ids) if query else ():
            of_store = await self._search(request, tool.search(store_id, query))
            if isinstance(of_store, Answer):
                return of_store
            found += of_store
        found.sort(key=lambda one: -one.score)
        shown = _within(found[: tool.max_num_results or MOST_RESULTS], self._budget(str(body.get("model"))))
        return Grounds(replace(request, body=_asked(body, shown)), dict(body), query, shown)


@dataclass(slots=True)
class Grounds:
    """What was found for one request, and the request as the engine is asked it."""

    request: Request
    body: dict[str, Any]  # as the client sent it
    query: str
    found: list[Found]
    call_id: str = field(init=False)

    def __post_init__(self) -> None:
        self.call_id = f"fs_{self.request.request_id.rpartition('_')[2]}"

    def call(self, status: str) -> dict[str, Any]:
        """The item that says what was searched for; with its results where they were asked for."""
        wanted = RESULTS in (self.body.get("include") or ()) and status == "completed"
        results = [_result(one) for one in self.found] if wanted else None
        item = {"id": self.call_id, "type": "file_search_call", "status": status, "queries": [self.query]}
        return {**item, "results": results}

    def shown(self, response: Any) -> Any:
        """The engine's response as the client is shown it; whatever else it may be stays as it is."""
        if not isinstance(response, dict) or not isinstance(response.get("output"), list):
            return response
        response |= {name: self.body.get(name, _DEFAULTS[name]) for name in _ECHOED}
        if response["output"] or response.get("status") in ("completed", "incomplete"):
            response["output"] = [self.call("completed"), *map(self.cited, response["output"])]
        return response

    def cited(self, item: Any) -> Any:
        content = item.get("content") if isinstance(item, dict) and item.get("type") == "message" else None
        return item | {"content": [self.part(part) for part in content]} if isinstance(content, list) else item

    def part(self, part: Any) -> Any:
        if not isinstance(part, dict) or part.get("type") != "output_text":
            return part
        return part | {"annotations": citations(str(part.get("text") or ""), self.found)}


_DEFAULTS: Final[Mapping[str, Any]] = {"instructions": None, "tools": [], "tool_choice": "auto"}


class _Told:
    """A stream of events with the search among them: numbered anew, the message after the search."""

    def __init__(self, grounds: Grounds, emit: Emit) -> None:
        self._grounds = grounds
        self._emit = emit
        self._number = 0
        self._searched = False

    async def event(self, chunk: bytes) -> None:
        event = msgspec.json.decode(chunk)
        if not isinstance(event, dict):
            await self._emit(chunk)
            return
        kind = str(event.get("type"))
        if not self._searched and kind not in ("response.created", "response.queued", "response.in_progress"):
            self._searched = True
            await self._tell_search()
        for one in self._changed(kind, event):
            await self._send(one)

    def _changed(self, kind: str, event: dict[str, Any]) -> list[dict[str, Any]]:
        grounds = self._grounds
        if isinstance(event.get("output_index"), int):
            event["output_index"] += 1
        if "response" in event:
            event["response"] = grounds.shown(event["response"])
        elif kind == "response.content_part.done":
            event["part"] = grounds.part(event.get("part"))
        elif kind == "response.output_item.done":
            event["item"] = grounds.cited(event.get("item"))
        elif kind == "response.output_text.done":
            return [*self._annotations(event), event]
        return [event]

    def _annotations(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        place = {name: event.get(name) for name in ("item_id", "output_index", "content_index")}
        return [
            {"type": "response.output_text.annotation.added", **place, "annotation_index": n, "annotation": annotation}
            for n, annotation in enumerate(citations(str(event.get("text") or ""), self._grounds.found))
        ]

    async def _tell_search(self) -> None:
        place = {"output_index": 0, "item_id": self._grounds.call_id}
        item = {"type": "response.output_item.added", "output_index": 0, "item": self._grounds.call("in_progress")}
        await self._send(item)
        for step in ("in_progress", "searching", "completed"):
            await self._send({"type": f"response.file_search_call.{step}", **place})
        await self._send(item | {"type": "response.output_item.done", "item": self._grounds.call("completed")})

    async def _send(self, event: dict[str, Any]) -> None:
        await self._emit(msgspec.json.encode(event | {"sequence_number": self._number}))
        self._number += 1


def _searches(request: Request) -> bool:
    tools = request.body.get("tools") if request.url == URL else None
    return isinstance(tools, list) and any(_is_search(tool) for tool in tools)


def _is_search(tool: Any) -> bool:
    return isinstance(tool, dict) and tool.get("type") == TOOL


def _tool(body: Mapping[str, Any]) -> FileSearch:
    """The tool, checked. Raises ValidationError, InvalidRequest."""
    given = next(tool for tool in body["tools"] if _is_search(tool))
    tool = msgspec.convert({name: value for name, value in given.items() if name != "type"}, FileSearch)
    if not 1 <= len(tool.vector_store_ids) <= MOST_STORES or tool.max_num_results not in (None, *range(1, 51)):
        raise InvalidRequest(f"it names 1 to {MOST_STORES} vector stores, and takes 1 to 50 results.")
    if tool.ranking_options is not None:
        _check_ranking(tool.ranking_options)
    if tool.filters is not None:
        check_filter(tool.filters, "filters")
    return tool


def _check_ranking(options: Ranking) -> None:
    weights = options.hybrid_search or Hybrid()
    least, most = sorted((weights.embedding_weight, weights.text_weight))
    if not 0 <= least <= most <= MOST_WEIGHT or most == 0:
        raise InvalidRequest(f"weights are 0 to {MOST_WEIGHT}, and at least one of them is above 0.")
    if not 0 <= options.score_threshold <= 1:
        raise InvalidRequest("score_threshold is 0 to 1.")


def _query(given: Any) -> str:
    """What the user said last."""
    if isinstance(given, str):
        return given.strip()[:_LONGEST_QUERY]
    said = [item for item in given if isinstance(item, dict) and item.get("role") == "user"] if given else []
    content = said[-1].get("content") if said else ""
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [str(part.get("text") or "") for part in parts if isinstance(part, dict)]
    return "\n".join(texts).strip()[:_LONGEST_QUERY]


def _within(found: Sequence[Found], characters: int) -> list[Found]:
    """As many as the model has room for, and at least the beginning of the best."""
    shown: list[Found] = []
    for one in found:
        if shown and len(one.text) > characters:
            break
        shown.append(msgspec.structs.replace(one, text=one.text[:characters]))
        characters -= len(one.text)
        if characters <= 0:
            break
    return shown


def _asked(body: Mapping[str, Any], found: Sequence[Found]) -> dict[str, Any]:
    """The body as an engine is asked it: without the tool, and with what it found."""
    tools = [tool for tool in body["tools"] if not _is_search(tool)]
    asked = {name: value for name, value in body.items() if name not in ("tools", "tool_choice", "include")}
    if tools:
        choice = body.get("tool_choice")
        asked["tools"] = tools
        asked |= {"tool_choice": choice} if choice is not None and not _is_search(choice) else {}
    include = [name for name in body.get("include") or () if name != RESULTS]
    asked |= {"include": include} if include else {}
    if isinstance(asked.get("input"), list):
        asked["input"] = [item for item in asked["input"] if not _is_call(item)]
    asked["instructions"] = "\n\n".join(filter(None, [body.get("instructions"), _excerpts(found)]))
    return asked


def _is_call(item: Any) -> bool:
    """Of an earlier turn: engines know no such item."""
    return isinstance(item, dict) and item.get("type") == "file_search_call"


def _excerpts(found: Sequence[Found]) -> str:
    if not found:
        return _NOTHING
    blocks = [f"[{n}] {_title(one)}:\n{one.text}" for n, one in enumerate(found, 1)]
    return "\n\n".join([_FOUND, *blocks])


def _title(found: Found) -> str:
    section = " > ".join(found.meta.get("section") or ())
    page = f"page {found.meta['page']}" if found.meta.get("page") else ""
    return ", ".join(filter(None, [found.filename, page, section]))


def _result(found: Found) -> dict[str, Any]:
    facts = {"file_id": found.file_id, "filename": found.filename, "score": found.score, "text": found.text}
    return facts | {"attributes": found.attributes or {}}
