"""References in the request of a step to results of other steps: `{{train.fine_tuned_model}}`.

A reference may stand in any string, also beside other text. The templates of evals have the namespaces `item` and
`sample`, and chat templates are programs of their own: these stay as they are.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from jobs.evals.templates import NAMESPACES

#: A field whose text is no place for references.
_LITERAL: Final = "chat_template"
_PLACEHOLDER: Final = re.compile(r"\{\{([^{}]*)\}\}")


class Reference(NamedTuple):
    """A reference. `param` is the path of its string in the request, `field` the name of a result of `step`."""

    param: str
    step: str
    field: str


def find_references(request: Mapping[str, Any]) -> Iterator[Reference]:
    """Yield the references of a request, in their order. A placeholder without a dot has an empty `field`."""
    for param, text in _strings(request, ""):
        for placeholder in _PLACEHOLDER.findall(text):
            step, _, field = placeholder.strip().partition(".")
            if step not in NAMESPACES:
                yield Reference(param, step, field)


def has_reference(text: str | None) -> bool:
    """Return whether a text has a reference, and so no value yet."""
    return text is not None and _PLACEHOLDER.search(text) is not None


def fill(value: Any, results: Mapping[tuple[str, str], str]) -> Any:
    """Return a value with its references replaced by these results, by step and field. All other text stays."""
    if isinstance(value, dict):
        return {name: member if name == _LITERAL else fill(member, results) for name, member in value.items()}
    if isinstance(value, list):
        return [fill(item, results) for item in value]
    if not isinstance(value, str):
        return value

    def result_of(match: re.Match[str]) -> str:
        step, _, field = match[1].strip().partition(".")
        return results.get((step, field), match[0])

    return _PLACEHOLDER.sub(result_of, value)


def _strings(value: Any, param: str) -> Iterator[tuple[str, str]]:
    """Yield the strings of a value, each with its path."""
    if isinstance(value, str):
        yield param, value
    elif isinstance(value, dict):
        for name, member in value.items():
            if name != _LITERAL:
                yield from _strings(member, f"{param}.{name}" if param else name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, f"{param}[{index}]")
