"""The items of a run as they are read: stored answers with what they were asked and what they took."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from jobs.batches.lines import Bad
from jobs.evals.runs import Evaluation
from jobs.inference import responses, stored
from jobs.inference.stored import StoredAnswer, encode
from jobs.platform.storage import DiskStorage
from jobs.requests.endpoints import CHAT, RESPONSES
from jobs.settings import Settings
from workers.evals.cases import source_of

MESSAGE = {"role": "user", "content": "Where?"}
PART = {"type": "output_text", "text": "Paris", "annotations": []}
ANSWERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "stored_completions": (
        CHAT,
        {"messages": [MESSAGE], "temperature": 0.2, "max_tokens": 5},
        {
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "Paris"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
        },
    ),
    "responses": (
        RESPONSES,
        {"input": [MESSAGE], "temperature": 0.2, "max_output_tokens": 5},
        {
            "status": "completed",
            "output": [{"type": "message", "role": "assistant", "content": [PART]}],
            "usage": {"input_tokens": 9, "output_tokens": 2, "total_tokens": 11},
        },
    ),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_stored_answer_is_shown_with_its_own_tokens_and_parameters(tmp_path: Path, kind: str) -> None:
    (endpoint, request, answer), storage = ANSWERS[kind], DiskStorage(tmp_path)
    path = {CHAT: stored.completion_path, RESPONSES: responses.path}[endpoint]("answer_1")
    storage.put(path, encode(endpoint, StoredAnswer(request, {"id": "answer_1", "model": "m-1", **answer})))
    storage.put("items.jsonl", msgspec.json.encode({"id": "answer_1", "metadata": {"team": "a"}}) + b"\n")
    payload = Evaluation(eval_id="eval_1", items="items.jsonl", item_schema={}, criteria=[], stored=kind)
    run: Any = SimpleNamespace(payload=payload.model_dump(mode="json"), project_id="p")
    context: Any = SimpleNamespace(storage=storage, config=Settings())

    (case,) = source_of(context, run, checked=False).cases()

    assert not isinstance(case, Bad)
    assert case.row.item == {"input": [MESSAGE], "model": "m-1", "metadata": {"team": "a"}}
    sample = case.row.shown
    assert (sample["input"], sample["output"]) == ([MESSAGE], [{"role": "assistant", "content": "Paris"}])
    assert (sample["model"], sample["temperature"], sample["max_completion_tokens"]) == ("m-1", 0.2, 5)
    assert sample["usage"] == {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11, "cached_tokens": 0}
