"""The sample that graders see: what a model answered, as the namespace `sample` of templates and python graders."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from jobs.requests.endpoints import CHAT, LIKELIHOOD, SEARCH

#: What reading a body that is no answer raises: status 200 does not make it one.
_NO_ANSWER: Final = (LookupError, TypeError, AttributeError, ArithmeticError)


def sample_from_answer(endpoint: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the sample of the answer of an endpoint; None for a response that failed, or for what is no answer."""
    with suppress(*_NO_ANSWER):
        return None if body.get("status") == "failed" else _sample_of(endpoint, body)
    return None


def _sample_of(endpoint: str, body: Mapping[str, Any]) -> dict[str, Any]:
    if endpoint == CHAT:
        return sample_from_completion(body)
    if endpoint == SEARCH:
        return sample_from_search(body)
    return sample_from_likelihood(body) if endpoint == LIKELIHOOD else sample_from_response(body)


def sample_from_text(text: str) -> dict[str, Any]:
    """Return the sample of a model that answered `text`."""
    return sample_from_message({"role": "assistant", "content": text})


def sample_from_given(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sample that came with an item, and what graders read of the answer that it is.

    The answer is a whole chat completion or response, as the SDK of a client dumps it, or a text as `output_text`.
    Fields that were given stay as they are. A sample that is no answer is returned unchanged.
    """
    read: dict[str, Any] = {}
    with suppress(*_NO_ANSWER):
        if "choices" in given:
            read = sample_from_completion(given)
        elif "output" in given and given.get("status") != "failed":
            read = sample_from_response(given)
        elif isinstance(given.get("output_text"), str):
            read = sample_from_text(given["output_text"])
    return {**read, **given}


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
    text = text_of(message.get("content"))
    sample: dict[str, Any] = {
        "output_text": text,
        "output_tools": message.get("tool_calls") or [],
        "choices": [{"index": 0, "message": dict(message), "finish_reason": finish_reason}],
    }
    if message.get("audio"):
        sample["output_audio"] = message["audio"]
    with suppress(ValueError, RecursionError):
        sample["output_json"] = read_json(text)
    return sample


def read_json(text: str) -> Any:
    """Return the value of a JSON text. Raises: ValueError, also for NaN and infinity; RecursionError."""
    return json.loads(text, parse_constant=_refuse)


def text_of(content: Any) -> str:
    """Return the content of a message as one text: its texts, and `[image_url]` for a part of the type `image_url`."""
    parts = content if isinstance(content, list) else [content]
    return "\n".join(_text_of_part(part) for part in parts)


def _text_of_part(part: Any) -> str:
    match part:
        case str():
            return part
        case {"text": str() as text} | {"refusal": str() as text}:
            return text
        case {"type": str() as kind}:
            return f"[{kind}]"
    return ""


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON value")
