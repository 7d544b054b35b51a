"""Promptfoo's templates: those of Nunjucks that have text and paths alone, such as `{{ question }}`, `{{ user.name }}`.

A path means the same here. Filters, expressions, blocks and comments have no counterpart.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cli.migrate.promptfoo.files import NoCounterpart

_PATH: Final = re.compile(
    r"""\s*([A-Za-z_$][\w$]*)((?:\.[A-Za-z_$][\w$]*|\[(?:\d{1,9}|"[^"\]]+"|'[^'\]]+')\])*)\s*""", re.ASCII
)
_STEP: Final = re.compile(r"""\.([\w$]+)|\[(\d+)\]|\["([^"]+)"\]|\['([^']+)'\]""", re.ASCII)
_MAPPED: Final = re.compile(r"\{\{\s*(\w+)\s*\}\}", re.ASCII)
_MAX_ROUNDS: Final = 5
#: Names that Promptfoo or Nunjucks give a meaning, and JavaScript's property of lists and texts.
_SPECIAL: Final = frozenset(
    {"env", "_conversation", "range", "cycler", "joiner", "loop", "true", "false", "none", "null"}
)
_LENGTH: Final = "length"
#: Characters of a text once its variables are inserted.
_MAX_TEXT: Final = 1 << 20

Steps = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class PathTemplate:
    """A template: texts, and the steps of paths."""

    parts: tuple[str | Steps, ...]

    @property
    def names(self) -> list[str]:
        """Return the variables, each once."""
        return list(dict.fromkeys(str(part[0]) for part in self.parts if isinstance(part, tuple)))

    def to_item(self, given: Mapping[str, str] | None = None) -> str:
        """Return the template of a grader, in which a variable is a field of the item or what is `given` for it."""
        given = given or {}
        return "".join(
            part if isinstance(part, str) else given[name] if (name := str(part[0])) in given else item_path(part)
            for part in self.parts
        )

    def to_prompt(self) -> str:
        """Return the text of a stored prompt. Raises: NoCounterpart, where a path goes into a variable."""
        if any(isinstance(part, tuple) and len(part) > 1 for part in self.parts):
            raise NoCounterpart("a placeholder goes into a variable: prompts have names alone")
        return "".join(part if isinstance(part, str) else f"{{{{{part[0]}}}}}" for part in self.parts)

    def render(self, values: Mapping[str, Any]) -> str:
        """Return the text with the values of its variables, empty where there is none. Raises: NoCounterpart."""
        return "".join(part if isinstance(part, str) else to_text(_value_at(values, part)) for part in self.parts)


def parse(text: str) -> PathTemplate:
    """Return the template of a text. Raises: NoCounterpart."""
    if "{%" in text or "{#" in text:
        raise NoCounterpart("its template has a block or a comment of Nunjucks")
    first, *rest = text.split("{{")
    parts: list[str | Steps] = [first]
    for piece in rest:
        inside, closed, after = piece.partition("}}")
        match = _PATH.fullmatch(inside)
        if not closed or match is None:
            raise NoCounterpart(f"its template has more than a path: '{{{{{inside[:60]}'")
        steps: Steps = (
            match[1],
            *(int(step[1]) if step[1] else step[0] or step[2] or step[3] for step in _STEP.findall(match[2])),
        )
        if steps[0] in _SPECIAL or _LENGTH in steps[1:]:
            raise NoCounterpart(f"its template has {inside.strip()[:60]!r}, which only Promptfoo fills")
        parts += [steps, after]
    return PathTemplate(tuple(parts))


def item_path(steps: Iterable[str | int]) -> str:
    """Return the placeholder of a path into the item."""
    shown = (
        f"[{step}]" if isinstance(step, int) else f".{step}" if re.fullmatch(r"[\w-]+", step) else f'["{step}"]'
        for step in steps
    )
    return f"{{{{ item{''.join(shown)} }}}}"


def to_text(value: Any) -> str:
    """Return a value as it stands in a text. Raises: NoCounterpart, for an object."""
    if isinstance(value, dict | list):
        raise NoCounterpart("its template inserts an object")
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def resolve_variables(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return variables in which those that name others are filled, as Promptfoo fills them: five times.

    Raises: NoCounterpart, where a template is left.
    """
    resolved = {name: re.sub(r"\n\Z", "", value) if isinstance(value, str) else value for name, value in values.items()}
    for _ in range(_MAX_ROUNDS):
        for name, value in resolved.items():
            match = _MAPPED.search(value) if isinstance(value, str) else None
            if match and match[1] in resolved and len(value) < _MAX_TEXT:
                resolved[name] = value[: match.start()] + to_text(resolved[match[1]]) + value[match.end() :]
    for name, value in resolved.items():
        if isinstance(value, str) and ("{{" in value or "{%" in value):
            raise NoCounterpart(f"its variable {name!r} is a template that is not filled here")
    return resolved


def _value_at(values: Mapping[str, Any], steps: Steps) -> Any:
    value: Any = values
    for step in steps:
        try:
            value = value[step]
        except (LookupError, TypeError):
            return None
    return value
