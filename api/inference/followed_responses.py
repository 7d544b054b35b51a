"""The events of a response that is kept, or is being answered in the background, from any of them on.

queued ──▶ created, queued         told by us
running ──▶ what its worker tells, over Redis; of an attempt that starts over from its `response.created` on
        ──▶ nothing of it where an item was begun before: the SDK's helper breaks where one is begun again
ended ──▶ what is left of that, and its last event, which the ledger tells      nothing left: the whole, written out

That helper wants every item to have ended, too: what an attempt began that did not answer ends as `incomplete`.
It all ends when its key is revoked.
"""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

import msgspec
from fastapi import Request

from api.deps import CallContext
from api.http.key_watch import check_key, until_revoked
from api.inference import stored_responses
from api.inference.asking import KEEP_ALIVE
from api.inference.response_events import written_out
from api.shares import run_in_threadpool
from jobs.errors import DatabaseBusy, NotFound, StorageAway, StreamsAway
from jobs.inference import responses

_LOOK_SECONDS = 0.5
_KEEP_ALIVE_SECONDS = 2.0
_LIVE = frozenset({"queued", "in_progress"})
_ENDED = frozenset({"completed", "incomplete", "failed"})


async def follow(
    call: CallContext, request: Request, response: dict[str, Any], after: int, *, results: bool
) -> AsyncIterator[bytes]:
    """Server-sent events with a `sequence_number` above `after`, until the response ends or somebody leaves.

    `results`: with what searches in files found.
    """
    following = _Following(call, response, after, results)
    with suppress(NotFound):  # deleted meanwhile: there is nothing more to tell
        async for event in until_revoked(following.events()):
            yield event
            if call.services.stopping.is_set() or (event is KEEP_ALIVE and await request.is_disconnected()):
                return


class _Following:
    def __init__(self, call: CallContext, response: dict[str, Any], after: int, results: bool) -> None:
        self._call, self._response, self._seen, self._results = call, response, after, results
        self._id = str(response["id"])
        self._place = "0-0"
        self._heard = False  # whether its worker has told anything
        self._items = _Items()

    async def events(self) -> AsyncIterator[bytes]:
        """Raises NotFound, KeyRevoked."""
        for event in self._begun():
            yield self._event(event)
        said = time.monotonic()
        live = True
        while live:
            live = _status(self._response) in _LIVE
            async for told in self._told():  # asked after the ledger was: of what has ended this is all
                said = time.monotonic()
                yield told
            if live and time.monotonic() - said >= _KEEP_ALIVE_SECONDS:
                said = time.monotonic()
                yield KEEP_ALIVE
            if live:
                await self._look()
        for event in self._end():
            yield self._event(event)

    def _begun(self) -> list[dict[str, Any]]:
        """What can be said before a worker has told anything; of what has ended that is its beginning anyway."""
        if _status(self._response) not in _LIVE:
            return []
        kinds = list(enumerate(("response.created", "response.queued")))[self._seen + 1 :]
        return [{"type": kind, "response": dict(self._response), "sequence_number": n} for n, kind in kinds]

    def _end(self) -> list[dict[str, Any]]:
        """What says how it ended; all that follows, to somebody who reads it written out and can be told nothing else.

        An attempt's numbers are far above those of what is written out: see `responses.numbered`.
        """
        response, status = self._response, _status(self._response)
        if status not in _ENDED:  # cancelled: OpenAI has no event that says so
            return []
        written = [] if self._heard else written_out(response)
        left = [event for event in written if event["sequence_number"] > self._seen]
        if left:
            return left
        last = {"type": f"response.{status}", "response": dict(response)}
        ends = [*(self._items.given_up(response) if status == "completed" else ()), last]
        return [{**event, "sequence_number": self._seen + n} for n, event in enumerate(ends, 1)]

    async def _told(self) -> AsyncIterator[bytes]:
        """What the worker has told until now; waits a moment where that is nothing."""
        while True:
            try:
                found = await self._call.services.lines.told(self._id, self._place, _LOOK_SECONDS)
            except StreamsAway:
                found = None
            for place, body in found or ():
                self._place, self._heard = place, True
                event = msgspec.json.decode(body)
                if self._items.told(event) and event["sequence_number"] > self._seen:
                    if isinstance(event.get("response"), dict):
                        event["response"] = responses.ours(event["response"], self._response, self._response)
                    yield self._event(event)
            if not found:
                return

    async def _look(self) -> None:
        """As it stands now; as it was known while the database or storage is away. Raises NotFound, KeyRevoked."""
        with suppress(DatabaseBusy, StorageAway):
            self._response = await run_in_threadpool(self._stands)

    def _stands(self) -> dict[str, Any]:
        """SQL is asked twice a second, the object read when it has ended. Raises NotFound, KeyRevoked."""
        with self._call.db.read() as session:
            check_key(session, self._call)
            status = stored_responses.status(session, self._call, self._id)
        if status in _LIVE:
            return {**self._response, "status": status}
        return stored_responses.load(self._call, self._id).response

    def _event(self, event: dict[str, Any]) -> bytes:
        self._seen = int(event["sequence_number"])
        shown = event if self._results else responses.bare(event)
        return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(shown))


class _Items:
    """What was begun of the output, by what workers told, also to whoever follows only now."""

    def __init__(self) -> None:
        self._number = -1
        self._any = self._again = False
        self._open: dict[int, dict[str, Any]] = {}

    def told(self, event: Mapping[str, Any]) -> bool:
        """Whether it is to be shown: not of an attempt that was given up, nor of one that begins what was begun."""
        if event["sequence_number"] <= self._number:
            return False
        self._number = event["sequence_number"]
        self._again = self._again or (self._any and event["type"] == "response.created")
        if self._again:
            return False
        if event["type"] == "response.output_item.added":
            self._any = True
            self._open[event["output_index"]] = event["item"]
        elif event["type"] == "response.output_item.done":
            self._open.pop(event["output_index"], None)
        return True

    def given_up(self, response: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The ends of what was begun and is not in the answer."""
        answered = {item.get("id") for item in response["output"]}
        return [
            {"type": "response.output_item.done", "output_index": index, "item": {**item, "status": "incomplete"}}
            for index, item in self._open.items()
            if item.get("id") not in answered
        ]


def _status(response: Mapping[str, Any]) -> str:
    return str(response.get("status") or "completed")
