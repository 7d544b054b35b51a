"""Invalid context strategies: of interactive requests, background responses, and lines of a file.

It is judged where it comes in: nobody works in these worlds.
"""

from collections.abc import Iterator
from typing import Any

from tests.badinputs.case import Case
from tests.badinputs.world import World, said
from tests.support.inline_deployment import MODEL, chat_line, jsonl

AREA = "Contexts"
SAID: list[Any] = [{"role": "user", "content": "Hi"}]
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": MODEL, "messages": SAID},
    "/v1/responses": {"model": MODEL, "input": SAID},
    "/v1/responses?": {"model": MODEL, "input": SAID, "background": True},
}

#: By what is wrong: the field, its code, and what of it that is about.
WRONG: dict[str, tuple[Any, str, str]] = {
    "a text": ("sliding_window", "invalid_value", "context"),
    "an array": ([{"strategy": "rotate"}], "invalid_value", "context"),
    "true": (True, "invalid_value", "context"),
    "nothing in it": ({}, "missing_required_parameter", "context.strategy"),
    "only how many turns stay": ({"keep_last": 2}, "missing_required_parameter", "context.strategy"),
    "a strategy nobody knows": ({"strategy": "forget"}, "invalid_value", "context.strategy"),
    "a strategy in capitals": ({"strategy": "ROTATE"}, "invalid_value", "context.strategy"),
    "a strategy that is a number": ({"strategy": 1}, "invalid_value", "context.strategy"),
    "two strategies": ({"strategy": ["rotate", "memory"]}, "invalid_value", "context.strategy"),
    "a field nobody knows": ({"strategy": "rotate", "frobnicate": 1}, "unknown_parameter", "context.frobnicate"),
    "a field of 100 KB": ({"strategy": "rotate", "x" * 100_000: 1}, "unknown_parameter", f"context.{'x' * 64}"),
    "keep_last as text": ({"strategy": "rotate", "keep_last": "2"}, "invalid_value", "context.keep_last"),
    "keep_last true": ({"strategy": "rotate", "keep_last": True}, "invalid_value", "context.keep_last"),
    "keep_last 1.5": ({"strategy": "rotate", "keep_last": 1.5}, "invalid_value", "context.keep_last"),
    "keep_last -1": ({"strategy": "rotate", "keep_last": -1}, "invalid_value", "context.keep_last"),
    "keep_last 0": ({"strategy": "rotate", "keep_last": 0}, "invalid_value", "context.keep_last"),
    "keep_last 10**30": ({"strategy": "rotate", "keep_last": 10**30}, "invalid_value", "context.keep_last"),
    "max_tokens 0": ({"strategy": "rotate", "max_tokens": 0}, "invalid_value", "context.max_tokens"),
    "max_tokens 2**40": ({"strategy": "rotate", "max_tokens": 1 << 40}, "invalid_value", "context.max_tokens"),
    "summary_tokens 15": ({"strategy": "summarize", "summary_tokens": 15}, "invalid_value", "context.summary_tokens"),
    "summary_tokens of another": ({"strategy": "rotate", "summary_tokens": 99}, "invalid_value",
                                  "context.summary_tokens"),
    "keep_first of another": ({"strategy": "priority", "keep_first": 1}, "invalid_value", "context.keep_first"),
    "a model without a name": ({"route_long": ""}, "invalid_value", "context.route_long"),
    "a model of 300 characters": ({"route_long": "x" * 300}, "invalid_value", "context.route_long"),
    "an embedding model that is an array": ({"strategy": "memory", "embedding_model": ["x"]}, "invalid_value",
                                            "context.embedding_model"),
}  # fmt: skip
PRIORITIES: dict[str, Any] = {"text": "high", "true": True, "null": None, "an object": {}, "10**7": 10**7}


def posted(world: World, context: Any, **message: Any) -> str:
    """Return what each route answers, and for which parameter; each different answer once."""
    answers = []
    for path, fields in ROUTES.items():
        name = "messages" if "messages" in fields else "input"
        given = fields | {"context": context, name: [SAID[0] | message]}
        answer = world.client.post(path.rstrip("?"), json=given)
        answers.append(f"{said(answer)}: {answer.json()['error']['param']}")
    return " | ".join(dict.fromkeys(answers))


def in_a_file() -> tuple[bytes, str]:
    """Return a valid line and every invalid one, and what a dry run should report of them."""
    lines, told = [chat_line("good", "hello", context={"strategy": "rotate", "keep_first": 0})], []
    for context, code, param in WRONG.values():
        lines.append(chat_line(f"c{len(lines)}", "hello", context=context))
        told.append(f"{code}@{len(lines)} {param}")
    for priority in PRIORITIES.values():
        line = chat_line(f"c{len(lines)}", "hello", context={"strategy": "priority"})
        line["body"]["messages"][0]["priority"] = priority
        lines.append(line)
        told.append(f"invalid_type@{len(lines)} messages")
    return jsonl(lines), ", ".join(told)


def dry_run(world: World, content: bytes) -> str:
    file_id = world.upload(content).json()["id"]
    asked = {"input_file_id": file_id, "endpoint": "/v1/chat/completions"}
    found = world.client.post("/v1/batches/validate", json=asked).json()["errors"]["data"]
    return ", ".join(f"{one['code']}@{one['line']} {one['param'].removeprefix('body.')}" for one in found)


def cases() -> Iterator[Case]:
    for name, (context, code, param) in WRONG.items():
        yield Case(AREA, name, f"400 {code}: {param}", lambda world, context=context: posted(world, context))
    for name, priority in PRIORITIES.items():
        yield Case(
            AREA,
            f"a priority that is {name}",
            "400 invalid_type: messages | 400 invalid_type: input",
            lambda world, priority=priority: posted(world, {"strategy": "priority"}, priority=priority),
        )
    content, told = in_a_file()
    yield Case(AREA, "all of these in a file", told, lambda world: dry_run(world, content), creates=True, seconds=10)
