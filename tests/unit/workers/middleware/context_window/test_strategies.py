"""Every strategy on any conversation: what is sent fits, what must stay is there, what belongs together is together."""

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.requests.endpoints import RESPONSES
from tests.unit.workers.middleware.context_window.engines import (
    LIMIT,
    Counting,
    Nobody,
    chat,
    fitted,
    prompt_tokens,
    said,
)
from workers.engines.port import Request

BUDGET = LIMIT - 10
CUTTING = ("truncate_middle", "sliding_window", "priority", "key_facts", "rotate", "memory", "summarize")

_text = st.lists(st.sampled_from(["cat", "dog", "sun", "Is it?", "No.", "東京。", "rain"]), max_size=40).map(" ".join)


@st.composite
def _conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw some turns, with tool calls, and system messages in between."""
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(_text)})
    for turn in range(draw(st.integers(1, 7))):
        messages.append({"role": "user", "content": draw(_text)})
        if draw(st.integers(0, 5)) == 0:
            messages.append({"role": "developer", "content": draw(_text)})
        if draw(st.booleans()):
            calls = [{"id": f"call_{turn}_{n}", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                     for n in range(draw(st.integers(1, 2)))]  # fmt: skip
            messages.append({"role": "assistant", "content": None, "tool_calls": calls})
            messages += [{"role": "tool", "tool_call_id": call["id"], "content": draw(_text)} for call in calls]
        if draw(st.booleans()):
            messages.append({"role": "assistant", "content": draw(_text)})
    messages.append({"role": "user", "content": draw(_text)})
    return _numbered(messages)


def _numbered(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages that begin with the number of their turn."""
    turn = 0
    for message in messages:
        turn += message["role"] == "user"
        if message["content"] is not None:
            message["content"] = f"t{turn} {message['content']}"
    return messages


def _items(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages as the input of a response."""
    items: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            output = {"call_id": message["tool_call_id"], "output": message["content"]}
            items.append({"type": "function_call_output", **output})
            continue
        items += [{"type": "function_call", "call_id": call["id"], **call["function"]}
                  for call in message.get("tool_calls", ())]  # fmt: skip
        if message["content"] is not None:
            items.append({"role": message["role"], "content": message["content"]})
    return items


def _calls(items: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    made = [call["id"] for item in items for call in item.get("tool_calls", ())]
    made += [item["call_id"] for item in items if item.get("type") == "function_call"]
    names = ("tool_call_id", "call_id")
    answered = [item[name] for item in items for name in names if name in item and item.get("type") != "function_call"]
    return made, answered


def _check_no_orphan(sent: list[dict[str, Any]]) -> None:
    """Check that calls have their results, results their calls, and all other messages their question."""
    made, answered = _calls(sent)
    assert sorted(made) == sorted(answered)
    said = [item for item in sent if item.get("role") not in ("system", "developer")]
    turns = {(item.get("content") or item.get("output") or " ").split(" ")[0] for item in said}
    assert turns - {""} == {item["content"].split(" ")[0] for item in said if item.get("role") == "user"}


def _last_turn(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    start = max(n for n, item in enumerate(items) if item.get("role") == "user")
    return [item for item in items[start:] if item.get("role") not in ("system", "developer")]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    messages=_conversations(), strategy=st.sampled_from(CUTTING), response=st.booleans(), keep_last=st.integers(1, 3)
)
async def test_shortened_prompt_fits_and_contains_required_messages(
    messages: list[dict[str, Any]], strategy: str, response: bool, keep_last: int
) -> None:
    engine = Counting()
    items = _items(messages) if response else messages
    context = {"strategy": strategy, "keep_last": keep_last}
    request = chat(items, context)
    if response:
        body = {"model": "m", "input": items, "max_output_tokens": 10, "context": context}
        request = Request(RESPONSES, body, "req_1", tenant="p")
    before = prompt_tokens(request)

    answer = await fitted(engine).answer(request)

    if answer.status == 400:
        assert said(answer)["error"]["code"] == "context_length_exceeded"
        assert before > BUDGET
        return
    sent = engine.asked[-1]
    name = "input" if response else "messages"
    assert "context" not in sent.body
    if before <= BUDGET:
        assert sent.body[name] == items
        assert "context" not in said(answer)
        return
    assert prompt_tokens(sent) <= BUDGET
    assert said(answer)["context"]["strategy"] == strategy
    assert (said(answer)["context"]["prompt_tokens_before"], said(answer)["context"]["prompt_tokens"]) == (
        before, prompt_tokens(sent),
    )  # fmt: skip
    kept = _without_note(sent.body[name]) if strategy in ("key_facts", "summarize") else sent.body[name]
    _check_kept(items, kept)
    if strategy != "truncate_middle":
        _check_no_orphan(kept)
    again = Request(sent.url, sent.body | {"context": context}, "req_2")
    await fitted(engine).answer(again)
    assert engine.asked[-1].body == sent.body, "what fits is left alone"


def _without_note(sent: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages without the note on earlier turns, which is quoted in the first message of a user."""
    at = next(n for n, item in enumerate(sent) if item.get("role") not in ("system", "developer"))
    note, _, said = sent[at]["content"].rpartition("\n\n")
    assert sent[at]["role"] == "user"
    assert all(line.startswith(">") for line in note.split("\n")[1:])
    return [*sent[:at], {**sent[at], "content": said}, *sent[at + 1 :]]


def _check_kept(items: list[dict[str, Any]], sent: list[dict[str, Any]]) -> None:
    above = [item["content"] for item in items if item.get("role") in ("system", "developer")]
    assert [item["content"] for item in sent if item.get("role") in ("system", "developer")] == above
    last = _last_turn(items)
    assert sent[len(sent) - len(last) :] == last or [item for item in sent if item in last] == last
    made, answered = _calls(sent)
    assert sorted(made) == sorted(answered)


_names = st.sampled_from(
    ["role", "content", "type", "text", "tool_calls", "tool_call_id", "call_id", "id", "function", "output", "priority"]
)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["user", "system", "tool", "function", "word " * 60]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=120, deadline=None)
@given(
    items=st.lists(st.dictionaries(_names, _json, max_size=5), max_size=6),
    strategy=st.sampled_from(CUTTING),
    url=st.sampled_from(["/v1/chat/completions", RESPONSES]),
)
async def test_arbitrary_items_are_answered_or_refused(items: list[Any], strategy: str, url: str) -> None:
    name = "messages" if url != RESPONSES else "input"
    context = {"strategy": strategy, "max_tokens": 40}

    answer = await fitted(Counting()).answer(Request(url, {"model": "m", name: items, "context": context}, "req_1"))

    assert answer.status in (200, 400)


async def test_the_oldest_turns_go_and_no_more_than_it_takes() -> None:
    engine = Counting()
    turns = [{"role": role, "content": f"{n} " * 10} for n in range(8) for role in ("user", "assistant")]

    answer = await fitted(engine).answer(chat(turns, {"strategy": "sliding_window"}))

    assert [item["content"][0] for item in engine.asked[0].body["messages"]] == ["4", "4", "5", "5", "6", "6", "7", "7"]
    assert said(answer)["context"] == {
        "strategy": "sliding_window", "dropped_messages": 8, "prompt_tokens_before": 178, "prompt_tokens": 90,
    }  # fmt: skip


async def test_rotate_keeps_the_first_turn_and_begins_its_window_at_the_same_place_for_a_while() -> None:
    windows = []
    for many in range(30, 46):
        engine = Counting()
        turns = [{"role": "user", "content": f"{n} " * 3} for n in range(many)]
        await fitted(engine).answer(chat(turns, {"strategy": "rotate"}))
        windows.append([int(item["content"].split()[0]) for item in engine.asked[0].body["messages"]])

    assert all(window[0] == 0 for window in windows)
    assert all(window[1:] == list(range(window[1], window[-1] + 1)) for window in windows)
    starts = [window[1] for window in windows]
    assert len(set(starts)) <= 4, "a window that moves with each turn is cached nowhere"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(messages=_conversations())
async def test_openais_truncation_leaves_no_orphan_either(messages: list[dict[str, Any]]) -> None:
    engine, items = Counting(), _items(messages)
    body = {"model": "m", "input": items, "max_output_tokens": 10, "truncation": "auto"}

    answer = await fitted(engine).answer(Request(RESPONSES, body, "req_1", tenant="p"))

    if answer.status == 200:
        sent = engine.asked[-1].body["input"]
        assert prompt_tokens(engine.asked[-1]) <= BUDGET
        assert sent[-1] == items[-1]
        assert [item for item in items if item in sent] == sent
        _check_no_orphan(sent)


def _said(role: str, text: str, many: int, **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": f"{text} " * many, **fields}


def _tool(name: str, many: int, **fields: Any) -> list[dict[str, Any]]:
    """Return a tool call and its result."""
    call = {"id": name, "type": "function", "function": {"name": "f", "arguments": "{}"}}
    return [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        _said("tool", name, many, tool_call_id=name, **fields),
    ]


async def _left(messages: list[dict[str, Any]], **context: Any) -> list[str]:
    """Return what `priority` sends: the first word of each message, `call` for a message without one."""
    engine = Counting()
    await fitted(engine).answer(chat(messages, {"strategy": "priority", **context}))
    sent = engine.asked[0].body["messages"]
    assert all("priority" not in item for item in sent)
    return [(item["content"] or "call").split()[0] for item in sent]


async def test_a_question_goes_with_its_answer_by_the_highest_priority_that_is_named() -> None:
    turns = [
        [_said("user", "a", 18, priority=1), _said("assistant", "A", 18, priority=99)],
        [_said("user", "b", 18), _said("assistant", "B", 18)],
        [_said("user", "c", 18), _said("assistant", "C", 18, priority=5)],
    ]
    messages = [message for turn in turns for message in turn]
    last = _said("user", "d", 5, priority=0)

    assert await _left([*messages, last]) == ["a", "A", "b", "B", "d"]
    assert await _left([*messages, last], max_tokens=50) == ["a", "A", "d"]
    assert await _left([*messages, last], max_tokens=20) == ["d"]


async def test_calls_of_tools_go_with_their_results_before_anything_else() -> None:
    messages = [
        _said("user", "a", 10), *_tool("one", 30), _said("assistant", "A", 10),
        _said("user", "b", 10), *_tool("two", 30), _said("assistant", "B", 10),
        _said("user", "c", 5),
    ]  # fmt: skip

    assert await _left(messages) == ["a", "A", "b", "call", "two", "B", "c"]
    assert await _left(messages, max_tokens=60) == ["a", "A", "b", "B", "c"]
    assert await _left(messages, max_tokens=40) == ["b", "B", "c"]


async def test_a_result_that_matters_keeps_its_call_and_its_question() -> None:
    messages = [
        _said("user", "a", 10), *_tool("one", 30, priority=50), *_tool("two", 30), _said("assistant", "A", 10),
        _said("user", "b", 10), _said("assistant", "B", 10),
        _said("user", "c", 5),
    ]  # fmt: skip

    assert await _left(messages) == ["a", "call", "one", "A", "b", "B", "c"]
    assert await _left(messages, max_tokens=70) == ["a", "call", "one", "A", "c"]
    assert await _left(messages, max_tokens=30) == ["a", "A", "c"]


async def test_a_result_that_does_not_matter_goes_alone() -> None:
    messages = [
        _said("user", "a", 10), _said("assistant", "A", 40),
        _said("user", "b", 10), *_tool("one", 30, priority=-5), _said("assistant", "B", 10),
        _said("user", "c", 5),
    ]  # fmt: skip

    assert await _left(messages) == ["a", "A", "b", "B", "c"]


async def test_a_middle_is_cut_out_of_the_longest_texts_alone() -> None:
    engine = Counting()
    long = " ".join(f"w{n}" for n in range(300))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [
        {"type": "text", "text": long}, {"type": "image_url", "image_url": {"url": "data:,"}},
    ]}, {"role": "user", "content": "What is it?"}]  # fmt: skip

    answer = await fitted(engine).answer(chat(messages, {"strategy": "truncate_middle"}))

    sent = engine.asked[0].body["messages"]
    text = sent[1]["content"][0]["text"]
    assert text.startswith("w0 w1")
    assert text.endswith("w299")
    assert "characters left out" in text
    assert sent[1]["content"][1] == messages[1]["content"][1]  # type: ignore[index]
    assert (sent[0], sent[2]) == (messages[0], messages[2])
    assert said(answer)["context"]["cut_messages"] == 1
    assert said(answer)["context"]["prompt_tokens"] > BUDGET - 10, "no more than it takes"


async def test_key_facts_are_the_sentences_that_the_question_is_about() -> None:
    engine = Counting()
    noise = "The weather was fine again and nobody said much about it. " * 12
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": f"{noise} The launch code of the rocket is 4711. {noise}"},
        {"role": "assistant", "content": "Noted."},
        {"role": "user", "content": "What is the launch code of the rocket?"},
    ]

    answer = await fitted(engine).answer(chat(messages, {"strategy": "key_facts"}))

    system, question = engine.asked[0].body["messages"]
    assert system == messages[0]
    note, said_last = question["content"].split("\n\n")
    assert said_last == messages[-1]["content"]
    assert note.startswith("From earlier in this conversation:\n")
    assert "> user: The launch code of the rocket is 4711." in note
    assert said(answer)["context"]["facts"] >= 1


async def test_memory_brings_back_the_turns_that_the_question_is_about_in_their_order() -> None:
    engine, others = Counting(), Nobody()
    turns = [
        {"role": "user", "content": f"{topic} " * 12}
        for topic in ("cats, cats", "dogs dogs", "birds birds", "again cats", "fish fish")
    ]
    messages = [*turns, {"role": "user", "content": "Tell me of cats and birds"}]

    answer = await fitted(engine, others).answer(chat(messages, {"strategy": "memory"}))

    sent = [item["content"].split()[0] for item in engine.asked[0].body["messages"]]
    assert sent == ["cats,", "birds", "again", "Tell"]
    assert said(answer)["context"]["recalled_turns"] == 3
    assert others.embedded[0] == "Tell me of cats and birds"
    assert max(len(text.encode()) for text in others.embedded) <= others.piece
