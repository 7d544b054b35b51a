"""Requests that name a prompt, and the requests that they become. Every door uses these functions.

    {"prompt": {id, version?, variables?}, …} ──resolve──▶ the version ──apply──▶ the request that an engine gets:
                                                                         its own fields, over those of the prompt

The prompt's messages come before the input of the request. A chat completion gets the prompt in the fields of chats.
This module reads no database: `jobs.prompts.versions.resolve` does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.errors import InvalidRequest
from jobs.prompts.rendering import PARAM, Renderer, bind
from jobs.requests.endpoints import CHAT, RESPONSES
from jobs.requests.token_estimates import LIMITS

#: The field with the messages of a request, by the endpoints whose requests may name a prompt.
MESSAGES: Final[Mapping[str, str]] = {RESPONSES: "input", CHAT: "messages"}
#: The references of one batch: the content of each is held in memory.
MAX_PINS: Final = 100

#: Parameters of responses that chat completions have under the same name, or another one. The rest says nothing there.
_CHAT_NAMES: Final[Mapping[str, str]] = {
    "max_output_tokens": "max_completion_tokens", "tool_choice": "tool_choice", "tools": "tools",
    "instructions": "", "include": "", "max_tool_calls": "", "reasoning": "", "text": "", "truncation": "",
}  # fmt: skip


class PromptReference(BaseModel):
    """A prompt that a request names. `version` is a number or a label, and the default one where there is none."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    id: str = Field(min_length=1, max_length=64)
    version: str | None = Field(default=None, max_length=64, description="The number of a version, or a label.")
    variables: dict[str, Any] | None = Field(default=None, max_length=1000)

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Return the reference in a request that the API has not checked. Raises: InvalidRequest."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            param = ".".join(("prompt", *map(str, first["loc"])))[:128]
            raise InvalidRequest(f"Invalid '{param}': {first['msg']}.", param=param, code="invalid_value") from error


@dataclass(frozen=True, slots=True)
class ResolvedPrompt:
    """A version of a prompt that a reference has led to. `bytes` is the size of its content."""

    id: str
    version: int
    hash: str
    bytes: int
    content: dict[str, Any]

    @property
    def model(self) -> str | None:
        model: str | None = self.content["model"]
        return model

    def apply(self, endpoint: str, fields: Mapping[str, Any], variables: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return a request without its prompt: the fields that it has, over those of the prompt.

        Raises: InvalidRequest.
        """
        renderer = Renderer(bind(self.content["variables"], variables or {}))
        instructions = self.content["instructions"]
        own = {name: self.content[name] for name in ("model", "tools", "tool_choice", "text")}
        own |= {**self.content["parameters"], "instructions": instructions and renderer.text(instructions)}
        messages = [
            {"role": message["role"], "content": renderer.content(message["content"])}
            for message in self.content["messages"]
        ]
        given = {name: value for name, value in fields.items() if value is not None and name != "prompt"}
        key = MESSAGES[endpoint]
        if endpoint == CHAT:
            own, messages = _chat_fields(own), _chat_messages(own["instructions"], messages)
            if any(name in given for name in LIMITS):
                own.pop("max_completion_tokens", None)
        own = {name: value for name, value in own.items() if value not in (None, [])}
        if messages or key in given:
            own[key] = [*messages, *_items(given.pop(key, []))] if messages else given.pop(key)
        return own | given

    def to_public(self, variables: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the field `prompt` of an answer."""
        return {"id": self.id, "version": str(self.version), "variables": variables, "hash": self.hash}


class PinnedPrompts:
    """The versions that the references of one batch name. Each is looked up once: labels that move change nothing.

    `pins` has the number of a version by its reference: `pmpt_1` for the default one, `pmpt_1@production` for a label.
    """

    def __init__(
        self, find_prompt: Callable[[PromptReference], ResolvedPrompt], pins: Mapping[str, str] | None = None
    ) -> None:
        self.pins = dict(pins or {})
        self._find, self._resolved = find_prompt, dict[str, ResolvedPrompt]()

    def resolve(self, reference: PromptReference) -> ResolvedPrompt:
        """Return the version that a reference named when it was first looked up. Raises: InvalidRequest, NotFound."""
        key = reference.id if reference.version is None else f"{reference.id}@{reference.version}"
        if key not in self._resolved:
            if len(self._resolved) == MAX_PINS:
                message = f"A batch names at most {MAX_PINS} prompts, labels and versions."
                raise InvalidRequest(message, param="prompt", code="too_many_prompts")
            pinned = reference.model_copy(update={"version": self.pins.get(key, reference.version)})
            self._resolved[key] = self._find(pinned)
            self.pins[key] = str(self._resolved[key].version)
        return self._resolved[key]

    def apply(self, endpoint: str, body: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Return the body of a line without its prompt, and the prompt as the answer names it, None without one.

        Raises: InvalidRequest, NotFound.
        """
        if endpoint not in MESSAGES or body.get("prompt") is None:
            return dict(body), None
        reference = PromptReference.parse(body["prompt"])
        prompt = self.resolve(reference)
        return prompt.apply(endpoint, body, reference.variables), prompt.to_public(reference.variables)


def _items(value: Any) -> list[Any]:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


def _chat_fields(own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a prompt as chat completions name them. Raises: InvalidRequest."""
    text, reasoning = own["text"] or {}, own.get("reasoning") or {}
    renamed = {_CHAT_NAMES.get(name, name): value for name, value in own.items()}
    renamed.pop("", None)
    if own.get("top_logprobs"):
        renamed["logprobs"] = True
    choice = own["tool_choice"]
    return renamed | {
        "tools": [_nest(tool, "function") for tool in own["tools"]],
        "tool_choice": _nest(choice, "function") if isinstance(choice, dict) else choice,
        "response_format": text.get("format") and _nest(text["format"], "json_schema"),
        "verbosity": text.get("verbosity"),
        "reasoning_effort": reasoning.get("effort"),
    }


def _nest(value: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return a tool or a format as chats have it: what it says stands in a field that its type names.

    Raises: InvalidRequest, for a tool that no chat has.
    """
    if value.get("type") != kind:
        if kind == "function":
            message = f"The prompt has a tool of the type '{value.get('type')}', which chat completions do not have."
            raise InvalidRequest(message, param="prompt", code="unsupported_tool")
        return dict(value)
    return {"type": kind, kind: {name: inner for name, inner in value.items() if name != "type"}}


def _chat_messages(instructions: str | None, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    system = [{"role": "system", "content": instructions}] if instructions else []
    return [*system, *({**message, "content": _chat_content(message["content"])} for message in messages)]


def _chat_content(content: Any) -> Any:
    return [_chat_part(part) for part in content] if isinstance(content, list) else content


def _chat_part(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part of a message as chats have it. Raises: InvalidRequest, for an image that has no URL."""
    rest = {name: value for name, value in part.items() if name != "type"}
    match part["type"]:
        case "input_text":
            return {"type": "text", **rest}
        case "input_file":
            return {"type": "file", "file": rest}
    if "image_url" not in rest:
        raise InvalidRequest("An image in a chat completion has a URL.", param=PARAM, code="invalid_value")
    return {"type": "image_url", "image_url": {"url": rest.pop("image_url"), **rest}}
