"""The sample that graders see: what a model answered, as the namespace `sample` of templates and python graders."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from jobs.requests.endpoints import CHAT, LIKELIHOOD, SEARCH


def sample_from_answer(endpoint: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sample of the answer of an endpoint."""
    if endpoint == CHAT:
        return sample_from_completion(body)
    if endpoint == SEARCH:
        return sample_from_search(body)
    return sample_from_likelihood(body) if endpoint == LIKELIHOOD else sample_from_response(body)


def sample_from_text(text: str) -> dict[str, Any]:
    """Return the sample of a model that answered `text`."""
    return sample_from_message({"role": "assistant", "content": text})


def sample_from_completion(body: Mapping[str, Any], index: int = 0) -> dict[str, Any]:
    """Return the sample of the choice `index` of a chat completion."""
    choice = body["choices"][index]
    return sample_from_message(choice["message"], choice.get("finish_reason") or "stop")


def sample_from_response(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sample of a response: its texts as one, and its calls of functions as those of a chat completion."""
    output = body["output"]
    parts = [part for item in output if item["type"] == "message" for part in item["content"]]
    calls = [
        {"id": item["call_id"], "type": "function", "function": {"name": item["name"], "arguments": item["arguments"]}}
        for item in output
        if item["type"] == "function_call"
    ]
    text = "".join(part["text"] for part in parts if part["type"] == "output_text")
    message = {"role": "assistant", "content": text} | ({"tool_calls": calls} if calls else {})
    reason = "length" if body.get("status") == "incomplete" else "tool_calls" if calls else "stop"
    return sample_from_message(message, reason)


def sample_from_search(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sample of the results of a search, best first: the files of the chunks are named once each."""
    chunks = body["chunks"]
    texts = [chunk["text"] for chunk in chunks]
    output = {
        "files": list(dict.fromkeys(chunk["file_id"] for chunk in chunks)),
        "filenames": list(dict.fromkeys(chunk["filename"] for chunk in chunks)),
        "chunks": [f"{chunk['file_id']}:{chunk['n']}" for chunk in chunks],
        "scores": [chunk["score"] for chunk in chunks],
        "contexts": texts,
    }
    return {**sample_from_text("\n\n".join(texts)), "output_json": output}


def sample_from_likelihood(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sample of the likelihood that a model gives to a text: `tokens` of it were predicted."""
    tokens, mean = body["tokens"], body["log_likelihood"] / body["tokens"]
    output = {"tokens": tokens, "mean_log_likelihood": mean, "perplexity": math.exp(-mean)}
    return {**sample_from_text(json.dumps(output)), "output_json": output}


def sample_from_message(message: Mapping[str, Any], finish_reason: str = "stop") -> dict[str, Any]:
    """Return the sample of an assistant's message. It has `output_json` only where the text is JSON."""
    text = message.get("content") or ""
    sample: dict[str, Any] = {
        "output_text": text,
        "output_tools": message.get("tool_calls") or [],
        "choices": [{"index": 0, "message": dict(message), "finish_reason": finish_reason}],
    }
    if message.get("audio"):
        sample["output_audio"] = message["audio"]
    with suppress(ValueError, RecursionError):
        sample["output_json"] = json.loads(text, parse_constant=_refuse)
    return sample


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON value")
