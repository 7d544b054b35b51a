"""One batch of chats in a whole deployment on real vLLM, with the packaged model, through the official SDK."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.support.system import ROOT, System, eventually
from workers.engines.model_folders import SMOLLM2, materialise

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

MODELS = Path(os.environ.get("NIGHTMILL_TEST_MODELS", ROOT / ".nightmill" / "models"))


def line(custom_id: str, **fields: Any) -> str:
    messages = [{"role": "user", "content": "Say hello."}]
    body = {"model": SMOLLM2, "messages": messages, "temperature": 0, "max_tokens": 8, **fields}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body})


LINES = [
    *(line(f"plain-{n}") for n in range(4)),
    line("priority", priority=-1),
    line("choice", structured_outputs={"choice": ["Paris"]}, top_k=1, max_tokens=20),
    line("guided-choice", guided_choice=["Paris"], max_tokens=20),
    line("n", n=2, temperature=1),
]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[OpenAI]:
    materialise(SMOLLM2, MODELS)
    system = System(tmp_path, NIGHTMILL_LEASE_SECONDS="60")  # the engine takes the cores while it loads
    system.data.mkdir()
    (system.data / "models").symlink_to(MODELS)
    try:
        system.start()
        with OpenAI(base_url=f"{system.url}/v1", api_key=system.api_key, timeout=60) as client:
            yield client
        assert system.stop() == 0
    finally:
        system.destroy()


def test_batch_on_vllm_answers_each_line_once(client: OpenAI) -> None:
    file = client.files.create(file=("in.jsonl", "\n".join(LINES).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")

    eventually(lambda: client.batches.retrieve(batch.id).status == "completed", 600, "the batch is completed", every=1)

    batch = client.batches.retrieve(batch.id)
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (7, 1)
    answers = results(client, batch.output_file_id)
    assert sorted(answers) == ["choice", "guided-choice", "n", *(f"plain-{n}" for n in range(4))]
    texts = {name: [choice["message"]["content"] for choice in body["choices"]] for name, body in answers.items()}
    assert all(text.strip() for choices in texts.values() for text in choices)
    assert texts["choice"] == texts["guided-choice"] == ["Paris"]
    assert len(texts["n"]) == 2
    usages = [body["usage"] for body in answers.values()]
    assert all(usage["prompt_tokens"] > 0 and usage["completion_tokens"] > 0 for usage in usages)
    assert batch.usage is not None
    assert batch.usage.total_tokens == sum(usage["total_tokens"] for usage in usages)
    [refused] = results(client, batch.error_file_id).values()
    assert (refused["error"]["param"], refused["error"]["code"]) == ("priority", "unknown_parameter")


def results(client: OpenAI, file_id: str | None) -> dict[str, Any]:
    """Return the bodies of a file of results by `custom_id`, of which each is in one line."""
    lines = [json.loads(line) for line in client.files.content(str(file_id)).text.splitlines()]
    bodies = {line["custom_id"]: line["response"]["body"] for line in lines}
    assert len(bodies) == len(lines)
    return bodies
