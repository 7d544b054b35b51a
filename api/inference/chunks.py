"""Join the chunks of a streamed chat completion into the answer that the client would have got without `stream`."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

_OF_A_CHUNK: Final = frozenset({"choices", "object", "obfuscation"})
#: Fields whose last value counts: they are not joined, and an empty value does not overwrite one.
_NAMES: Final = frozenset({"role", "type", "id", "index"})
#: Fields of a function that come in parts, which are joined, or whole in every chunk.
_NAME: Final = "name"


@dataclass(slots=True)
class _Choice:
    texts: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    parts: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)

    def add(self, choice: Mapping[str, Any]) -> None:
        delta = choice.get("delta")
        for name, value in delta.items() if isinstance(delta, dict) else ():
            if isinstance(value, str) and name not in _NAMES and name != _NAME:
                self.texts[name].append(value)
            else:
                _add(self.parts, name, value)
        for name in choice.keys() - {"delta", "index"}:
            last = isinstance(choice[name], str)  # such as a finish reason: a text that is not continued
            self.fields[name] = choice[name] if last else _merge(self.fields.get(name), choice[name])

    def whole(self, index: int) -> dict[str, Any]:
        texts = {name: "".join(entries) for name, entries in self.texts.items()}
        message = {"role": "assistant", "content": None, "refusal": None, **self.parts, **texts}
        calls = self.parts.get("tool_calls")
        if isinstance(calls, list):
            message["tool_calls"] = [_drop_index(call) for call in calls]
        return {"index": index, "message": message, "logprobs": None, "finish_reason": None, **self.fields}


class Chunks:
    """The chunks of one stream. `broken`: one of them was an error."""

    def __init__(self) -> None:
        self.broken = False
        self._fields: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = defaultdict(_Choice)

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Add a chunk. It must not be changed afterwards."""
        if chunk.get("error") is not None:
            self.broken = True
        self._fields |= {name: chunk[name] for name in chunk.keys() - _OF_A_CHUNK if chunk[name] is not None}
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and isinstance(choice.get("index"), int):
                self._choices[choice["index"]].add(choice)

    def whole(self) -> dict[str, Any] | None:
        """Return the joined answer, None unless every choice has ended."""
        choices = [choice.whole(index) for index, choice in sorted(self._choices.items())]
        if self.broken or not choices or any(choice["finish_reason"] is None for choice in choices):
            return None
        return {**self._fields, "choices": choices}


def _merge(so_far: Any, more: Any) -> Any:
    """Merge two values: texts and lists are joined, objects by name, numbered parts by number.

    Otherwise the last counts.
    """
    if more is None:
        return so_far
    if isinstance(so_far, str) and isinstance(more, str):
        return so_far + more
    if isinstance(so_far, dict) and isinstance(more, dict):
        for name, value in more.items():
            _add(so_far, name, value)
        return so_far
    if isinstance(so_far, list) and isinstance(more, list):
        for part in more:
            _put(so_far, part)
        return so_far
    return _merge([], more) if isinstance(more, list) else more


def _add(parts: dict[str, Any], name: str, value: Any) -> None:
    if name in _NAMES:
        if value not in (None, ""):
            parts[name] = value
    elif name != _NAME or value != parts.get(name):
        parts[name] = _merge(parts.get(name), value)


def _put(parts: list[Any], part: Any) -> None:
    index = part.get("index") if isinstance(part, dict) else None
    if index is None:
        parts.append(part)
        return
    same = next((part for part in parts if isinstance(part, dict) and part.get("index") == index), None)
    if same is None:
        parts.append(part)
    else:
        _merge(same, part)


def _drop_index(call: Any) -> Any:
    return {name: value for name, value in call.items() if name != "index"} if isinstance(call, dict) else call
