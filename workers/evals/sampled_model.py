"""How the evaluated model is asked about an item, and the sample that its answer is.

item ─▶ messages ─▶ body of the request ─▶ answer ─▶ sample, and what clients see of it
"""

from typing import Any, Final

from jobs.evals.graders.base import ModelAnswer
from jobs.evals.graders.messages import Message
from jobs.evals.grading import chat_messages
from jobs.evals.runs import Sampled, SampledPrompt
from jobs.evals.samples import sample_from_answer
from jobs.evals.templates import TemplateError, fill, references, render, resolve, to_text
from jobs.fleet.models_file import Registry
from jobs.prompts.resolution import MESSAGES, ResolvedPrompt
from jobs.registry.models import base_model_of
from jobs.requests.endpoints import CHAT
from workers.evals import shown
from workers.evals.item_sources import CaseRow

#: The names of sampling parameters in the requests to each endpoint. Responses know no seed.
_RESPONSE_FIELDS: Final = {"max_completion_tokens": "max_output_tokens", "reasoning_effort": "reasoning"}


def request_of(sampled: Sampled, item: dict[str, Any], index: int) -> tuple[list[Any], dict[str, Any]]:
    """Return the messages to the sampled model about an item, and the body of the request for the sample `index`.

    Raises GradingError, InvalidRequest, TemplateError.
    """
    if sampled.prompt is not None:
        return _prompt_request(sampled, sampled.prompt, item, index)
    messages = _messages_of(sampled, item)
    return messages, _body_of(sampled, messages, index)


def _prompt_request(
    sampled: Sampled, used: SampledPrompt, item: dict[str, Any], index: int
) -> tuple[list[Any], dict[str, Any]]:
    values = {name: fill(value, item) for name, value in used.variables.items()}
    for variable in used.content["variables"]:
        if variable["type"] == "string" and values.get(name := variable["name"]) is not None:
            values[name] = to_text(values[name])
    prompt = ResolvedPrompt(**used.model_dump(exclude={"variables"}))
    body = prompt.apply(sampled.endpoint, _params_of(sampled, index), values)
    instructions = body.get("instructions")
    system = [{"role": "system", "content": instructions}] if instructions else []
    body = {name: value for name, value in body.items() if name != "model"}
    return [*system, *body.get(MESSAGES[sampled.endpoint], ())], body if index else enable_cache(sampled.endpoint, body)


def _messages_of(sampled: Sampled, item: dict[str, Any]) -> list[Any]:
    """Return the messages to the sampled model about an item; a text is one message.

    Raises GradingError, TemplateError.
    """
    if sampled.text is not None:
        return [{"role": "user", "content": render(sampled.text, item, {})}]
    if sampled.template is not None:
        return chat_messages([Message.model_validate(message) for message in sampled.template], item, {})
    (reference,) = references("{{" + (sampled.reference or "") + "}}")
    messages = resolve(reference, {"item": item}, {})
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise TemplateError(f"'{reference}' is not a list of messages.", "invalid_variable_error")
    return messages


def _body_of(sampled: Sampled, messages: list[Any], index: int) -> dict[str, Any]:
    if sampled.text is not None:
        return {"input": messages[0]["content"]}
    params = _params_of(sampled, index)
    if sampled.endpoint == CHAT:
        body = {"messages": messages, **params}
        return body if index else enable_cache(CHAT, body)
    return {"input": [_response_message(message) for message in messages], **params}


def _params_of(sampled: Sampled, index: int) -> dict[str, Any]:
    """Return the parameters of the sample `index` as the endpoint names them. Samples differ by their seed."""
    params = dict(sampled.params)
    if index and "seed" in params:
        params["seed"] += index
    if sampled.endpoint == CHAT:
        return params
    params.pop("seed", None)
    if "reasoning_effort" in params:
        params["reasoning_effort"] = {"effort": params["reasoning_effort"]}
    return {_RESPONSE_FIELDS.get(name, name): value for name, value in params.items()}


def add_sample(row: CaseRow, index: int, sampled: Sampled, answer: ModelAnswer, context_length: int | None) -> None:
    """Add to a row the sample that the model's answer is, if it is one, and what clients see of it."""
    messages, body = request_of(sampled, row.item, index)
    request = body if sampled.text is None else {}
    if 200 <= answer.status < 300:
        row.sample = sample_from_answer(sampled.endpoint, answer.body)
    limits: dict[str, Any] = {"model": sampled.model, "context_length": context_length}
    row.shown = shown.of_item(row.sample, messages, request, answer.body, error=shown.error_of(answer), **limits)


def context_length_of(registry: Registry, name: str) -> int | None:
    """Return the tokens of the context of a model, as the models file has it; of a tuned one that of its base."""
    model = registry.resolve(base_model_of(name))
    return None if model is None else model.engine_args.get("max_model_len") or model.max_model_len


def _response_message(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message of a chat as responses have it."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": [_response_part(part, str(message.get("role"))) for part in content]}


def _response_part(part: Any, role: str) -> Any:
    match part:
        case {"type": "text", "text": text}:
            return {"type": "output_text" if role == "assistant" else "input_text", "text": text}
        case {"type": "image_url", "image_url": {"url": url, **rest}}:
            return {"type": "input_image", "image_url": url, **rest}
    return part


def enable_cache(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Let an answer be repeated that is the same each time."""
    return {**body, "cache": True} if url == CHAT and body.get("temperature") == 0 else body
