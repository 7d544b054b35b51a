"""A prompt as a conversation: which of its messages belong together, and which must stay.

    [system] [user assistant] [user assistant(call) tool assistant] [user]
     stays    a turn           a turn                                the last turn: stays

A turn begins with a message of the user. A tool call and its result are in one turn and in one group, whatever stands
between them. Reasoning is grouped with the item that follows. Items are messages of a chat, or items of a response.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from jobs.inference.context_options import PRIORITY, PROMPT
from jobs.requests.endpoints import RESPONSES
from workers.middleware import quoting

_ABOVE: Final = ("system", "developer")
_FUNCTION: Final = "function"  # the role of results before OpenAI had tools
_TEXTS: Final = ("text", "input_text", "output_text")


@dataclass(frozen=True, slots=True)
class History:
    """The conversation of one request. Items are named by their index."""

    url: str
    body: dict[str, Any]
    items: list[dict[str, Any]]
    turns: list[list[int]]  # indexes of items, without system and developer messages
    groups: list[list[int]]  # items that are kept or dropped together
    above: list[int]
    priorities: dict[int, Any]  # of items that have one

    @classmethod
    def of(cls, url: str, body: Mapping[str, Any]) -> "History | None":
        """Return the conversation of a body; None if the body is malformed and engines will refuse it."""
        prompt = body.get(PROMPT[url])
        items = [{"role": "user", "content": prompt}] if isinstance(prompt, str) and url == RESPONSES else prompt
        if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
            return None
        priorities = {n: item[PRIORITY] for n, item in enumerate(items) if PRIORITY in item}
        items = [{name: value for name, value in item.items() if name != PRIORITY} for item in items]
        above = [n for n, item in enumerate(items) if item.get("role") in _ABOVE]
        groups = _groups(items, [n for n, item in enumerate(items) if item.get("role") not in _ABOVE])
        return cls(url, {**body, PROMPT[url]: items}, items, _turns(items, groups), groups, above, priorities)

    def older_turns(self, kept_turns: int) -> list[list[int]]:
        """Return the turns that may be dropped."""
        return self.turns[: max(0, len(self.turns) - kept_turns)]

    def is_tool_call(self, group: Sequence[int]) -> bool:
        """Return whether the group is a tool call with its results."""
        items = [self.items[n] for n in group]
        return any(item.get("role") == _FUNCTION or _call_ids(item) or _result_ids(item) for item in items)

    def with_items(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self.body, PROMPT[self.url]: items}

    def items_of(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = body[PROMPT[self.url]]
        return items

    def drop_items(self, dropped: Collection[int]) -> dict[str, Any]:
        dropped = set(dropped)
        return self.with_items([item for n, item in enumerate(self.items) if n not in dropped])

    def add_note(self, dropped: Collection[int], title: str, lines: Sequence[str]) -> dict[str, Any]:
        """Return the body without the dropped items.

        A note about them stands at the beginning of the next user message.
        """
        body = self.drop_items(dropped)
        if not lines:
            return body
        items, note = self.items_of(body), quoting.note(title, lines)
        at = next((n for n, item in enumerate(items) if item.get("role") not in _ABOVE), len(items))
        next_, new = items[at : at + 1], [{"role": "user", "content": note}]
        if next_ and next_[0].get("role") == "user":
            next_, new = [], quoting.prepend(note, next_[0], "input_text" if self.url == RESPONSES else "text")
        return self.with_items([*items[:at], *new, *next_, *items[at + 1 :]])

    def text(self, n: int) -> str:
        """Return all text of an item, tool calls and results included."""
        return "\n".join(text for text in texts(self.items[n]) if text)

    def speaker(self, n: int) -> str:
        item = self.items[n]
        return str(item.get("role") or item.get("type") or "unknown")[:32]

    @property
    def question_index(self) -> int | None:
        """Return the index of the user's last message."""
        return max((n for n, item in enumerate(self.items) if item.get("role") == "user"), default=None)

    @property
    def question(self) -> str:
        return "" if self.question_index is None else self.text(self.question_index)


def texts(item: Mapping[str, Any]) -> Iterator[str]:
    """Yield the texts of an item, without the excerpts of files before a question."""
    for name in ("content", "output", "arguments"):
        value = item.get(name)
        if isinstance(value, str):
            yield _split_excerpts(item, value)[1]
        for part in _list(value):
            if isinstance(part, dict) and part.get("type") in _TEXTS and isinstance(part.get("text"), str):
                yield _split_excerpts(item, part["text"])[1]
    for call in _list(item.get("tool_calls")):
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            yield f"{function.get('name')}({function.get('arguments')})"


def change_texts(item: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Return the item with its message texts or tool results changed by `change`."""

    def own(text: str) -> str:
        excerpts, rest = _split_excerpts(item, text)
        return excerpts + change(rest)

    new = dict(item)
    for name in ("content", "output"):
        value = item.get(name)
        if isinstance(value, str):
            new[name] = own(value)
        elif isinstance(value, list):
            new[name] = [_change_part(part, own) for part in value]
    return new


def _split_excerpts(item: Mapping[str, Any], text: str) -> tuple[str, str]:
    return quoting.split_message(text) if item.get("role") == "user" else ("", text)


def _change_part(part: Any, change: Callable[[str], str]) -> Any:
    if not isinstance(part, dict) or part.get("type") not in _TEXTS or not isinstance(part.get("text"), str):
        return part
    return {**part, "text": change(part["text"])}


def _groups(items: Sequence[Mapping[str, Any]], indexes: Sequence[int]) -> list[list[int]]:
    """Group tool calls with their results, and reasoning with the item that follows; any other item is alone."""
    leader = {n: n for n in indexes}

    def find(n: int) -> int:
        while leader[n] != n:
            leader[n] = leader[leader[n]]
            n = leader[n]
        return n

    calls: dict[str, int] = {}  # the last call with an id: some clients reuse ids
    before: int | None = None
    for n in indexes:
        item = items[n]
        calls |= dict.fromkeys(_call_ids(item), n)
        related = [calls[name] for name in _result_ids(item) if name in calls]
        if before is not None and (items[before].get("type") == "reasoning" or item.get("role") == _FUNCTION):
            related.append(before)
        for other in related:
            leader[find(n)] = find(other)
        before = n
    members: dict[int, list[int]] = {}
    for n in indexes:
        members.setdefault(find(n), []).append(n)
    return sorted(members.values())


def _call_ids(item: Mapping[str, Any]) -> list[str]:
    """Return the ids of the tool calls that an item makes."""
    names = [call.get("id") for call in _list(item.get("tool_calls")) if isinstance(call, dict)]
    if not str(item.get("type")).endswith("_output"):
        names.append(item.get("call_id"))
    return [name for name in names if isinstance(name, str)]


def _result_ids(item: Mapping[str, Any]) -> list[str]:
    """Return the ids of the tool calls that an item answers."""
    names = [item.get("tool_call_id")]
    if str(item.get("type")).endswith("_output"):
        names.append(item.get("call_id"))
    return [name for name in names if isinstance(name, str)]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _turns(items: Sequence[Mapping[str, Any]], groups: Sequence[Sequence[int]]) -> list[list[int]]:
    indexes = sorted(n for group in groups for n in group)
    open_until = {n: max(group) for group in groups for n in group}
    turns: list[list[int]] = []
    reach = -1  # the last index of the groups that have begun
    for n in indexes:
        if not turns or (items[n].get("role") == "user" and n > reach):
            turns.append([])
        turns[-1].append(n)
        reach = max(reach, open_until[n])
    return turns
