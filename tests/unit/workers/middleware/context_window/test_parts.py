"""The strategies by themselves, where nothing is left to leave out, or what is made of it does not fit either."""

from typing import Any

import msgspec
import pytest

from jobs.inference.context_options import ContextOptions
from jobs.requests.endpoints import CHAT
from workers.engines.port import Answer, Request, Usage
from workers.middleware import context_strategies
from workers.middleware.base import add_usage
from workers.middleware.context_strategies import Vectors, key_facts
from workers.middleware.context_window import ContextReport
from workers.middleware.history import History
from workers.middleware.summaries import Summaries


def said(*turns: str) -> list[dict[str, Any]]:
    """`u` and `a` before the words say whose they are."""
    return [{"role": "user" if turn[0] == "u" else "assistant", "content": turn[1:]} for turn in turns]


def history_of(*turns: str) -> History:
    history = History.of(CHAT, {"model": "m", "messages": said(*turns)})
    assert history is not None
    return history


async def never(_body: dict[str, Any]) -> bool:
    return False


async def always(_body: dict[str, Any]) -> bool:
    return True


class Summarizing:
    """An engine whose tokens are characters, and whose summaries are short."""

    def __init__(self, budget: int = 1000, limit: int = 4000, least: int = 0) -> None:
        self.asked: list[str] = []
        self.least = least
        request = Request(CHAT, {"model": "m", "messages": []}, "r1")
        self.summaries = Summaries(request, ContextOptions(strategy="summarize"), self.ask, self.count, budget, limit)

    async def ask(self, request: Request) -> Answer:
        self.asked.append(request.body["messages"][-1]["content"])
        choice = {"message": {"content": "Short."}, "finish_reason": "stop"}
        return Answer(200, msgspec.json.encode({"choices": [choice]}), Usage())

    async def count(self, request: Request) -> int:
        return self.least + sum(len(message["content"]) for message in request.body["messages"])


async def test_conversation_without_older_turns_sends_no_summary_request() -> None:
    engine = Summarizing()

    assert await engine.summaries.summarize(history_of("uone"), always) is None
    assert engine.asked == []


async def test_no_summary_is_requested_without_room_for_summary() -> None:
    engine = Summarizing(budget=60)

    assert await engine.summaries.summarize(history_of("u" + "one " * 100, "atwo", "uthree"), always) is None
    assert engine.asked == []


async def test_no_summary_is_requested_without_room_for_source_text() -> None:
    engine = Summarizing(budget=8000, limit=4000, least=3990)

    assert await engine.summaries.summarize(history_of("uone", "atwo", "uthree"), always) is None
    assert engine.asked == []


async def test_oversized_final_summary_is_not_summarized_further() -> None:
    engine = Summarizing()

    assert await engine.summaries.summarize(history_of("uone", "atwo", "uthree"), never) is None
    assert engine.asked == ["user: one\nassistant: two"]


async def test_oversized_turn_is_split_and_summarized_in_levels() -> None:
    engine = Summarizing(limit=1200)

    cut = await engine.summaries.summarize(history_of("u" + "one " * 1000, "atwo", "uthree"), always)

    assert cut is not None
    assert len(engine.asked) > 3
    assert "".join(engine.asked).count("one") >= 999
    assert cut[0]["messages"][-1]["content"].endswith("three")


async def test_memory_without_question_recalls_nothing_and_embeds_nothing() -> None:
    history = history_of("uone", "atwo", "u")

    async def embed(_texts: list[str]) -> Vectors:
        raise AssertionError

    cut = await context_strategies.memory(history, ContextOptions(strategy="memory"), always, embed, 100)  # type: ignore[arg-type]

    assert cut == ({"model": "m", "messages": said("u")}, {"dropped_messages": 2, "recalled_turns": 0})


@pytest.mark.parametrize("text", ["", "one two three", "unbreakable", "東京東京", "😀 " * 9])
def test_pieces_have_at_most_so_many_bytes_and_lose_nothing(text: str) -> None:
    pieces = context_strategies._pieces(text, 8)

    assert all(len(piece.encode()) <= 8 for piece in pieces)
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")


def test_pieces_end_between_words_where_these_are_short() -> None:
    assert context_strategies._pieces("one two  three four five six", 24) == ["one two three four five", "six"]


async def test_key_facts_that_never_fit_are_none() -> None:
    assert await key_facts(history_of("uone", "atwo", "uthree"), ContextOptions(strategy="key_facts"), never) is None


def test_note_precedes_next_message_of_either_role() -> None:
    by_user = history_of("uone", "atwo", "uthree").add_note([0, 1], "Note:", ["x"])["messages"]
    by_model = history_of("uone", "atwo", "uthree").add_note([0], "Note:", ["x"])["messages"]

    assert [(one["role"], one["content"]) for one in by_user] == [("user", "Note:\n> x\n\nthree")]
    assert [one["role"] for one in by_model] == ["user", "assistant", "user"]
    assert by_model[0]["content"] == "Note:\n> x\n\n"
    assert history_of("uone", "atwo").add_note([0], "Note:", [])["messages"] == said("atwo")


def test_non_object_answer_is_returned_unchanged() -> None:
    shown = ContextReport({"strategy": "rotate"}, usage=Usage(1, 0, 2, 0))

    assert shown.answer(Answer(200, b"[1]")).body == b"[1]"
    usage = {"prompt_tokens": 3, "prompt_tokens_details": {"audio_tokens": 1}, "completion_tokens_details": None}
    assert add_usage(usage, Usage(1, 0, 2, 0)) == {**usage, "prompt_tokens": 4}
