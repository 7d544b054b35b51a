"""The texts of answers that are compared, when a shadow is asked, and how many tasks ask shadows at once."""

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from api.inference.shadows import AnswerText, ask_shadow
from api.shadow_tasks import ShadowTasks
from jobs.fleet.access import Work
from jobs.inference.interactive import AnswerEntry
from jobs.registry.aliases import AliasRouting, Shadow, WeightedModel
from jobs.requests.endpoints import CHAT, EMBEDDINGS

ROUTING = AliasRouting((WeightedModel("old", 100),), shadow=Shadow("new"))


def chunk(**fields: Any) -> AnswerEntry:
    return AnswerEntry("chunk", msgspec.json.encode(fields))


def message(text: str) -> dict[str, Any]:
    return {"type": "message", "content": [{"type": "output_text", "text": text}]}


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([chunk(choices=[{"index": 0, "message": {"content": "Hello"}}])], "Hello"),
        ([chunk(choices=[{"index": 1, "text": "b"}, {"index": 0, "text": "a"}])], "a\nb"),
        ([*(chunk(choices=[{"delta": {"content": text}}]) for text in (None, "H", "i")), chunk(choices=[]),
          AnswerEntry("end")], "Hi"),
        ([chunk(output=[{"type": "reasoning", "content": [{"text": "hm"}]}, message("Hello")])], "Hello"),
        ([chunk(type="response.created", response={"output": []}), chunk(type="response.output_text.delta", delta="He"),
          chunk(type="response.completed", response={"output": [message("Hello")]})], "Hello"),
        ([chunk(choices=[{"message": {"content": None, "tool_calls": []}}])], None),
        ([AnswerEntry("chunk", b"no JSON"), AnswerEntry("alive"), AnswerEntry("end")], None),
        ([chunk(choices=[{"text": "a" * 1000}])] * 2000, None),  # too long to be kept
    ],
)  # fmt: skip
def test_text_of_an_answer_is_that_of_its_entries(entries: list[AnswerEntry], text: str | None) -> None:
    whole = AnswerText()
    for entry in entries:
        whole.add(entry)

    assert whole.whole() == text


class Asked:
    """A call whose shadow is noted and not asked."""

    def __init__(self) -> None:
        self.counts: list[str] = []
        self.started = 0
        requests = SimpleNamespace(record_shadow=lambda *given: self.counts.append(str(given[3])))
        services = SimpleNamespace(requests=requests, shadow_tasks=self)
        self.call: Any = SimpleNamespace(services=services, project_id="p")

    def start(self, *_: object) -> bool:
        self.started += 1
        return True

    def follow(self, *entries: AnswerEntry, url: str = CHAT) -> AsyncGenerator[AnswerEntry]:
        async def answer() -> AsyncGenerator[AnswerEntry]:
            for entry in entries:
                yield entry

        return ask_shadow(answer(), ROUTING, self.call, Work("p", "k", "bot", url), url, {}, 10)


@pytest.mark.parametrize(
    ("entries", "is_asked"),
    [
        ((chunk(), AnswerEntry("end")), True),
        ((chunk(), AnswerEntry("end", status=500)), False),
        ((chunk(),), False),
    ],
)
async def test_shadow_is_asked_once_an_answer_has_ended_well(entries: tuple[AnswerEntry, ...], is_asked: bool) -> None:
    asked = Asked()

    seen = [(entry, asked.started) async for entry in asked.follow(*entries)]

    assert seen == [(entry, 0) for entry in entries]  # the client has all of it first
    assert (asked.started, len(asked.counts)) == (is_asked, is_asked)


async def test_shadow_is_not_asked_for_a_client_that_left() -> None:
    asked = Asked()
    following = asked.follow(chunk(), AnswerEntry("end"))
    await anext(following)
    await following.aclose()

    assert asked.started == 0


async def test_request_of_another_endpoint_is_counted_and_not_asked() -> None:
    asked = Asked()

    assert [entry async for entry in asked.follow(AnswerEntry("end"), url=EMBEDDINGS)]

    assert (asked.started, len(asked.counts)) == (0, 1)


async def test_tasks_are_bounded_by_alias_and_by_bytes() -> None:
    tasks, free = ShadowTasks(), asyncio.Event()

    async def wait() -> None:
        await free.wait()

    one, two = ("p", "one"), ("p", "two")
    started = [tasks.start(alias, 2, size, wait) for alias, size in [(one, 1)] * 3 + [(two, 63 << 20), (two, 2 << 20)]]
    assert started == [True, True, False, True, False]

    free.set()
    await asyncio.sleep(0.01)

    assert tasks.start(two, 1, 64 << 20, wait)
    await tasks.close()
