"""Which excerpts a model is shown: the best that it has room for, beside the question and the answer.

    context less question and answer ─▶ room ─▶ by rank, each that still fits ─▶ neighbours of one file put together

Chunks of a file that follow each other are shown in its order, and what two of them share is shown once.
"""

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from tokenizers import Tokenizer

from jobs.errors import InvalidRequest
from jobs.inference.context_options import AUTO, reserved, terms_of
from jobs.requests.endpoints import RESPONSES
from jobs.retrieval.searches import Found
from workers.middleware.quoting import excerpt

_ANSWER: Final = 1024  # tokens, of an answer whose length nobody has limited; a quarter of a small context
_FRAME: Final = 160  # of the chat's template, and of what is said of the excerpts
_BETWEEN: Final = 2  # one excerpt and the next
_LEAST: Final = 88  # of the best excerpt, whatever the room
_BYTES: Final = 4  # a token, where it cannot be counted
_MEDIA: Final = re.compile(r"data:[\w.+/-]+;base64,[\w+/=-]+")  # no text: what a picture takes its model alone knows


@dataclass(frozen=True, slots=True)
class Room:
    """A model's context in tokens, and how they are counted: without a tokenizer at four bytes each."""

    context: int
    tokenizer: Tokenizer | None = None

    def count(self, text: str) -> int:
        if self.tokenizer is None:
            return -(-len(text.encode()) // _BYTES)
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def left(self, body: Mapping[str, Any]) -> int:
        """What the question and its answer leave."""
        wanted = body.get("max_output_tokens")
        answer = wanted if isinstance(wanted, int) else min(_ANSWER, self.context // 4)
        said = msgspec.json.encode([body.get(name) for name in ("instructions", "input", "tools")]).decode()
        said = _MEDIA.sub("", said)
        if len(said) > self.context * 32:  # it is too much, however it is counted
            return 0
        return self.context - answer - self.count(said) - _FRAME


def room_for_excerpts(room: Room, body: Mapping[str, Any]) -> int:
    """Tokens. A history that may be cut leaves them at least half of what there is without it."""
    try:
        terms = terms_of(RESPONSES, body)
    except InvalidRequest:
        return room.left(body)  # it will be refused
    if terms is None or (terms.strategy is None and terms is not AUTO):
        return room.left(body)
    prompt = room.context - reserved(body, room.context)
    over = max(0, prompt - terms.max_tokens) if terms.max_tokens else 0
    alone = room.left({**body, "input": _last_turn(body.get("input"))}) - over
    return max(room.left(body) - over, alone // 2)


def _last_turn(given: Any) -> Any:
    if not isinstance(given, list):
        return given
    users = [n for n, item in enumerate(given) if isinstance(item, dict) and item.get("role") == "user"]
    return given[users[-1] :] if users else given


def pack(found: Sequence[Found], room: Room, tokens: int) -> list[Found]:
    """The best first, each whole; of the very best at least the beginning. Counted as they are shown."""
    kept: list[Found] = []
    for one in found:
        needed = room.count(excerpt(len(kept) + 1, one)) + _BETWEEN
        if needed <= tokens:
            kept.append(one)
            tokens -= needed
        elif not kept:
            return [_beginning(one, room, max(tokens - _BETWEEN, _LEAST))]
    return kept


def together(kept: Sequence[Found]) -> list[Found]:
    """As they are shown: by rank, but for those that follow another."""
    groups: list[list[Found]] = []
    for one in kept:
        near = [group for group in groups if any(_touch(one, other) for other in group)]
        groups = [group for group in groups if not any(group is other for other in near[1:])]
        if near:
            near[0] += [one, *(other for group in near[1:] for other in group)]
        else:
            groups.append([one])
    return [part for group in groups for part in _once(sorted(group, key=_start))]


def _touch(one: Found, other: Found) -> bool:
    if one.file_id != other.file_id or "start" not in one.meta or "start" not in other.meta:
        return False
    first, second = sorted((one, other), key=_start)
    return second.n == first.n + 1 or _start(second) <= int(first.meta["end"])


def _once(group: Sequence[Found]) -> list[Found]:
    """Without what the one before has shown."""
    shown, end = [group[0]], int(group[0].meta.get("end") or 0)
    for one in group[1:]:
        again = max(0, end - _start(one))
        if again < len(one.text):
            meta = {**one.meta, "start": _start(one) + again}
            shown.append(msgspec.structs.replace(one, text=one.text[again:], meta=meta))
        end = max(end, int(one.meta["end"]))
    return shown


def _beginning(one: Found, room: Room, tokens: int) -> Found:
    """As much of it as has so many tokens when it is shown."""

    def needed(length: int) -> int:
        return room.count(excerpt(1, msgspec.structs.replace(one, text=one.text[:length])))

    text = one.text[: max(0, bisect_right(range(len(one.text) + 1), tokens, key=needed) - 1)]
    meta = {**one.meta, "end": _start(one) + len(text)} if "start" in one.meta else one.meta
    return msgspec.structs.replace(one, text=text, meta=meta)


def _start(one: Found) -> int:
    return int(one.meta.get("start") or 0)
