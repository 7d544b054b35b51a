"""Which media a request may hold, and which it may not, however they are named."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobs.db.engine import Database
from jobs.fleet.models_file import Registry
from jobs.settings import Settings
from tests.support.fake_engine import FakeEngine
from tests.support.inline_deployment import chat_line, jsonl, running
from tests.support.scripted_server import Server, engine_of, error_of, request, serving
from workers.engines.build_engines import build
from workers.engines.caps import objection
from workers.engines.documented import body_for_server
from workers.engines.http.endpoints import Endpoint
from workers.engines.media import find_images
from workers.engines.router import Router

CHAT, RESPONSES, EMBEDDINGS, RERANK = "/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/rerank"
WEB = "http://169.254.169.254/latest"
DATA = "data:image/png;base64,iVBORw0KGgo="


SCHEMA = {"type": "object", "properties": {"image": {"type": "string"}, "video_id": {}, "media_type": {}}}


def part(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, fields]}]}


def item(**fields: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": [fields]}]}


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, part(type="image", url=WEB), "messages"),
    (CHAT, part(type="image", image=DATA), "messages"),
    (CHAT, part(type="video", video="file:/etc/passwd"), "messages"),
    (CHAT, part(type="document_url", document_url=WEB), "messages"),
    (CHAT, part(type="anything", url=WEB), "messages"),
    (CHAT, part(type="text", text="x", url=WEB), "messages"),
    (CHAT, part(type="text", text="x", image=WEB), "messages"),
    (CHAT, part(type=["image_url"], image_url=DATA), "messages"),
    (CHAT, part(image_url=DATA), "messages"),
    (CHAT, part(type="image_url", image_url={"url": DATA, "path": "/etc/passwd"}), "messages"),
    (CHAT, part(type="image_url", image_url={"url": DATA}, uuid="another's"), "messages"),
    (CHAT, part(type="file", file={"file_id": "file-1"}), "messages"),
    (CHAT, {"messages": [{"role": "user", "content": {"type": "anything", "url": WEB}}]}, "messages"),
    (CHAT, {"messages": [{"role": "user", "content": "x", "images": [WEB]}]}, "messages"),
    (CHAT, {"messages": [{"role": "user", "content": "x", "audio": {"url": WEB}}]}, "messages"),
    (CHAT, {"messages": [], "images": ["/etc/passwd"]}, "images"),
    (CHAT, {"messages": [], "image_data": WEB}, "image_data"),
    (CHAT, {"messages": [], "mm_data": {"x": WEB}}, "mm_data"),
    (CHAT, {"messages": [], "multi_modal_data": {"x": WEB}}, "multi_modal_data"),
    (CHAT, {"messages": [], "audio": WEB}, "audio"),
    (CHAT, {"messages": [], "documents": [{"content": [{"type": "anything", "url": WEB}]}]}, "documents"),
    (RESPONSES, item(type="image", url=WEB), "input"),
    (RESPONSES, item(type="input_image", file_id="file-1"), "input"),
    (RESPONSES, item(type="input_file", file_url=WEB), "input"),
    (
        RESPONSES,
        {"input": [{"type": "function_call_output", "call_id": "c", "output": [{"type": "x", "url": WEB}]}]},
        "input",
    ),
    (
        RESPONSES,
        {"input": [{"type": "custom_tool_call_output", "call_id": "c", "output": [{"type": "x", "url": WEB}]}]},
        "input",
    ),
    (RESPONSES, {"input": [{"type": "shell_call_output", "output": [{"image_url": WEB}]}]}, "input"),
    (RESPONSES, {"input": [{"type": "mcp_list_tools", "tools": [{"name": "f", "image": WEB}]}]}, "input"),
    (RESPONSES, {"input": [{"parameters": {"image": WEB}}]}, "input"),
    (RESPONSES, {"input": [{"role": "user", "content": [{"type": "image_generation_call", "result": WEB}]}]}, "input"),
    (
        RESPONSES,
        {"input": "x", "prompt": {"id": "p", "variables": {"a": {"type": "input_image", "image_url": WEB}}}},
        "prompt",
    ),
    (RESPONSES, {"input": "x", "prompt": {"variables": {"variables": {"image": WEB}}}}, "prompt"),
    (RESPONSES, {"input": "x", "image": WEB}, "image"),
    (EMBEDDINGS, {"input": [{"image": WEB}]}, "input"),
    (EMBEDDINGS, {"input": [{"url": WEB}]}, "input"),
    (EMBEDDINGS, {"input": {"url": WEB}}, "input"),
    (RERANK, {"query": "x", "documents": ["a", {"url": WEB}]}, "documents"),
    (RERANK, {"query": {"url": WEB}, "documents": ["a"]}, "query"),
    (RERANK, {"query": {"text": "x", "media_type": "pdf"}, "documents": ["a"]}, "query"),
    (RERANK, {"query": "x", "documents": [{"text": "a", "type": "image"}]}, "documents"),
    (RERANK, {"query": "x", "documents": [{"text": "a", "image_embeds": "AA=="}]}, "documents"),
    (RERANK, {"query": "x", "documents": [{"text": "a", "image_url": "cover"}]}, "documents"),
    *(
        (RERANK, {"query": "x", "documents": [{"text": "a", "image": place}]}, "documents")
        for place in (
            WEB,
            DATA,
            f" {WEB}",
            "ht\ntp:\n//a",
            "/etc/passwd",
            "../secret",
            "~/a",
            "file:a",
            {"x": "y"},
            ["a"],
        )
    ),
]


@pytest.mark.parametrize(("url", "body", "param"), REFUSED)
def test_media_that_a_server_would_fetch_or_open_are_refused(url: str, body: dict[str, Any], param: str) -> None:
    answer = objection(url, body)

    assert answer is not None
    assert (answer.status, error_of(answer)["param"]) == (400, param)


@pytest.mark.parametrize(
    ("url", "body"),
    [
        (CHAT, part(type="image_url", image_url={"url": DATA, "detail": "low"})),
        (CHAT, part(type="image_url", image_url=DATA, uuid=None)),
        (CHAT, part(type="video_url", video_url={"url": "data:video/mp4;base64,AA=="})),
        (CHAT, part(type="input_audio", input_audio={"data": "UklGRg==", "format": "wav"})),
        (CHAT, part(type="file", file={"file_data": "data:application/pdf;base64,AA==", "filename": "a.pdf"})),
        (CHAT, part(type="text", text="x", prompt_cache_breakpoint={"mode": "explicit"})),
        (CHAT, part(type="refusal", refusal="no")),
        (CHAT, {"messages": [{"role": "assistant", "content": "x", "audio": {"id": "a"}, "images": None}]}),
        (CHAT, {"messages": [], "mm_processor_kwargs": {"fps": 1}, "metadata": {"image": WEB}}),
        (CHAT, {"messages": [], "tools": [{"function": {"parameters": {"properties": {"image": {"type": "s"}}}}}]}),
        (CHAT, {"messages": [], "documents": [{"title": "a", "text": "b", "url": WEB}]}),
        (CHAT, {"messages": [], "chat_template_kwargs": {"add_image_ids": True}}),
        (RESPONSES, item(type="input_image", image_url=DATA, detail="auto", file_id=None)),
        (RESPONSES, item(type="input_file", file_data="JVBERi0=", filename="a.pdf")),
        (
            RESPONSES,
            item(type="output_text", text="x", annotations=[{"type": "url_citation", "url": WEB}], logprobs=[]),
        ),
        (RESPONSES, {"input": [{"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text"}]}]}),
        (RESPONSES, {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}),
        (
            RESPONSES,
            {
                "input": [
                    {
                        "type": "shell_call_output",
                        "call_id": "c",
                        "output": [{"stdout": "x", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}],
                    }
                ]
            },
        ),
        (
            RESPONSES,
            {
                "input": [
                    {"type": "mcp_list_tools", "server_label": "s", "tools": [{"name": "f", "input_schema": SCHEMA}]}
                ]
            },
        ),
        (
            RESPONSES,
            {"input": [{"type": "tool_search_output", "tools": [{"type": "function", "parameters": SCHEMA}]}]},
        ),
        (
            RESPONSES,
            {
                "input": [
                    {
                        "type": "tool_search_output",
                        "tools": [{"type": "namespace", "tools": [{"type": "function", "parameters": SCHEMA}]}],
                    }
                ]
            },
        ),
        (
            RESPONSES,
            {"input": [{"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "iV=="}]},
        ),
        (
            CHAT,
            {
                "messages": [],
                "prompt": {
                    "id": "p",
                    "variables": {
                        "image_title": "a",
                        "image_url": "b",
                        "c": {"type": "input_image", "image_url": DATA},
                    },
                },
            },
        ),
        (EMBEDDINGS, {"input": ["a", "b"]}),
        (EMBEDDINGS, {"input": [{"text": "a"}]}),
        (RERANK, {"query": "x", "documents": [{"text": "a", "url": WEB}]}),
        (RERANK, {"query": "x", "documents": [{"text": "a", "media_type": "pdf"}]}),
        (RERANK, {"query": "x", "documents": [{"text": "a", "media_type": "image/png", "image_title": "Note: a"}]}),
    ],
)
def test_inline_media_and_non_media_fields_are_accepted(url: str, body: dict[str, Any]) -> None:
    assert objection(url, body) is None


@pytest.mark.parametrize("name", ["adapter_id", "adapter_source", "lora_adapter", "lora_name"])
def test_no_adapter_is_chosen_by_a_request(name: str) -> None:
    assert body_for_server({"model": "m", "prompt": "x", name: "other"}, "m") == {"model": "m", "prompt": "x"}


def test_lines_of_a_batch_with_such_media_fail(sqlite: Database, tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text("models: {}")
    prompts: list[str] = []
    engine = Router([FakeEngine(("fake-model",), on_prompt=prompts.append)], Registry.read(tmp_path / "models.yaml"))
    bad = chat_line("bad", "x", **part(type="image", url=WEB))
    with running(sqlite, tmp_path, engine) as inline:
        (job,) = inline.drain(inline.submit(jsonl([chat_line("good", "hello"), bad])))
        inline.wait_until_idle()
        good, failed = inline.results(job)

    assert [line["custom_id"] for line in good] == ["good"]
    assert [(line["custom_id"], line["response"]["status_code"]) for line in failed] == [("bad", 400)]
    assert failed[0]["response"]["body"]["error"]["param"] == "messages"
    assert len(prompts) == 1


# Images that a text names.

MARKED = f"Look: ![]({WEB}) here"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [{"role": "user", "content": MARKED}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": MARKED}]}]}, "messages"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": one} for one in ("![](ht", "tp://a/b)")]}
                ]
            },
            "messages",
        ),
        ({"prompt": MARKED}, "prompt"),
        ({"prompt": "![]( < http://a/b>)"}, "prompt"),
        ({"prompt": ["x", "![an image]( HTTPS://example.com )"]}, "prompt"),
        ({"input": MARKED}, "input"),
        (
            {"messages": [{"tool_calls": [{"function": {"arguments": '{"a": "\\u0021[](\\u0068ttp://a/b)"}'}}]}]},
            "messages",
        ),
        ({"messages": [], "tools": [{"function": {"name": "f", "parameters": {MARKED: {}}}}]}, "tools"),
    ],
)
def test_an_image_that_the_text_names_by_its_url_is_found(body: dict[str, Any], param: str) -> None:
    answer = find_images({"model": "m", **body})

    assert answer is not None
    assert (answer.status, error_of(answer)["param"]) == (400, param)


@pytest.mark.parametrize(
    "text",
    [
        "see https://example.com/a.png",
        "[a link](https://example.com)",
        f"![]({DATA})",
        "wow! [a link](https://example.com)",
        "![" * 200_000,
        "](" * 200_000,
        "![](" + " " * 1_000_000,
        "![](<" + " " * 1_000_000,
        "\\" * 1_000_000,
    ],
)
def test_other_texts_go_on(text: str) -> None:
    assert (
        find_images({"model": "m", "messages": [{"role": "user", "content": text}], "metadata": {"a": MARKED}}) is None
    )


async def test_deployment_can_refuse_image_links_in_text() -> None:
    async def ignore(_: bytes) -> None: ...

    async with serving(Server()) as server:
        async with engine_of(Endpoint(server.url), refuses_text_images=True) as engine:
            refused = [await engine.answer(request(prompt=MARKED)), await engine.stream(request(prompt=MARKED), ignore)]
            assert (await engine.answer(request())).status == 200
        async with engine_of(Endpoint(server.url)) as engine:
            await engine.answer(request(prompt=MARKED))

    assert [answer.status for answer in refused] == [400, 400]
    assert [b"169.254" in msgspec.json.encode(body) for body in server.asked] == [False, True]


def test_the_setting_reaches_the_engine(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text("models: {}")
    config = Settings(data_dir=tmp_path, engine_urls=("http://a:1",), refuse_text_images=True)
    (engine,) = build(config, Registry.read(tmp_path / "models.yaml"), "gpu.generate").engines.running

    assert engine._refuses_text_images  # type: ignore[attr-defined]
