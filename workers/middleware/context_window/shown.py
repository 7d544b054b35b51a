"""What a client is shown of it: the field `context` in the answer, and what the summaries cost in its usage."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from jobs.inference.context_options import FIELD
from workers.engines.port import Answer, Emit, Usage
from workers.middleware.context_window.summaries import together

_TOTALS: Final = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens", "total_tokens": "total_tokens"}
_DETAILS: Final = {
    "prompt_tokens_details": "cached_tokens", "completion_tokens_details": "reasoning_tokens",
    "input_tokens_details": "cached_tokens", "output_tokens_details": "reasoning_tokens",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shown:
    """`told` is the field; `echo` is of the request, what the engine was not told."""

    told: dict[str, Any] = field(default_factory=dict)
    echo: Mapping[str, Any] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)

    def answer(self, answer: Answer) -> Answer:
        usage = together(answer.usage, self.usage)
        if answer.status != 200 or not answer.body or not (self.told or self.echo):
            return replace(answer, usage=usage)
        body = msgspec.json.decode(answer.body)
        return Answer(200, msgspec.json.encode(self._with_it(body)), usage)

    def emit(self, emit: Emit) -> Emit:
        """Of a chat the first chunk says it, of a response each event that has the response."""
        if not (self.told or self.echo):
            return emit
        first = True

        async def told(chunk: bytes) -> None:
            nonlocal first
            event = msgspec.json.decode(chunk)
            if isinstance(event, dict) and "response" in event:
                event["response"] = self._with_it(event["response"])
            elif isinstance(event, dict) and "choices" in event:
                event = self._with_it(event) if first else self._with_usage(event)
                first = False
            await emit(msgspec.json.encode(event))

        return told

    def _with_it(self, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        theirs = body.get(FIELD)
        told = {**(theirs if isinstance(theirs, dict) else {}), **self.told}
        return self._with_usage(body) | dict(self.echo) | ({FIELD: told} if told else {})

    def _with_usage(self, body: dict[str, Any]) -> dict[str, Any]:
        said = body.get("usage")
        return body | {"usage": more(said, self.usage)} if isinstance(said, dict) and self.usage.total_tokens else body


def more(said: Mapping[str, Any], usage: Usage) -> dict[str, Any]:
    """A usage as a client is shown it, and this much more."""
    return {name: _more(name, value, usage) for name, value in said.items()}


def _more(name: str, value: Any, usage: Usage) -> Any:
    if isinstance(value, int):
        return value + int(getattr(usage, _TOTALS.get(name, name), 0))
    inner = _DETAILS.get(name)
    if inner and isinstance(value, dict) and isinstance(value.get(inner), int):
        return value | {inner: value[inner] + getattr(usage, inner)}
    return value
