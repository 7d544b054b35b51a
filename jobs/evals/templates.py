"""Templates of graders and prompts: `{{ item.question }}`, `{{ sample.output_json.steps[0]["title"] }}`.

A placeholder is a path into the item or the sample. A path goes on into a string that is JSON, such as the arguments of
a call. A string is inserted as it is, any other value as JSON. Braces that are not closed are text. Checking and
rendering take time in proportion to the lengths of template, item, sample and result.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from jobs.evals.samples import read_json

MAX_LENGTH: Final = 256 << 10
#: Characters of a rendered template: a template may insert the same long field many times.
MAX_RENDERED: Final = 4 << 20
#: Characters of a string that is read as JSON.
MAX_JSON: Final = 1 << 20
NAMESPACES: Final = ("item", "sample")
SAMPLE_FIELDS: Final = ("output_text", "output_json", "output_tools", "choices", "output_audio")
_STEP: Final = re.compile(r"""\.([\w-]+)|\[(\d{1,9})\]|\["([^"\]]+)"\]|\['([^'\]]+)'\]""")
_SHOWN: Final = 64


class TemplateError(Exception):
    """A placeholder has no value for this item and sample. `code` names the reason as graders report it."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class TemplateReference:
    """A placeholder: the namespace, and the steps from there to a value."""

    namespace: str
    steps: tuple[str | int, ...]

    def __str__(self) -> str:
        steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.steps)
        return (self.namespace + "".join(steps))[:_SHOWN]


def check(text: str) -> str:
    """Return the template, if each of its placeholders is a path into the item or the sample.

    Raises: ValueError.
    """
    for reference in references(text):
        field = reference.steps[0] if reference.namespace == "sample" and reference.steps else SAMPLE_FIELDS[0]
        if field not in SAMPLE_FIELDS:
            raise ValueError(f"'{reference}' is not there. A sample has: {', '.join(SAMPLE_FIELDS)}.")
    return text


def references(text: str) -> list[TemplateReference]:
    """Return the placeholders of a template, in order. Raises: ValueError."""
    return [part for part in _parts(text) if isinstance(part, TemplateReference)]


def render(text: str, item: Mapping[str, Any], sample: Mapping[str, Any], read: dict[str, Any] | None = None) -> str:
    """Return the template with the values of its placeholders.

    `read` has the values of the strings that were read as JSON, so that other templates of this item read none again.

    Raises: TemplateError.
    """
    read = {} if read is None else read
    values = {"item": item, "sample": sample}
    rendered: list[str] = []
    length = 0
    for part in _parts(text):
        inserted = part if isinstance(part, str) else to_text(resolve(part, values, read))
        length += len(inserted)
        if length > MAX_RENDERED:
            raise TemplateError(f"The text is longer than {MAX_RENDERED} characters.", "invalid_variable_error")
        rendered.append(inserted)
    return "".join(rendered)


def value_of(text: str, item: Mapping[str, Any], sample: Mapping[str, Any], read: dict[str, Any] | None = None) -> Any:
    """Return the value of a template that is a placeholder and nothing else, or the text of any other template.

    `read` is that of `render`.

    Raises: TemplateError.
    """
    parts = [part for part in _parts(text) if not isinstance(part, str) or part.strip()]
    match parts:
        case [TemplateReference() as reference]:
            return resolve(reference, {"item": item, "sample": sample}, {} if read is None else read)
    return render(text, item, sample, read)


def resolve(reference: TemplateReference, values: Mapping[str, Any], read: dict[str, Any]) -> Any:
    """Return the value that a placeholder refers to. `read` is that of `render`.

    Raises: TemplateError.
    """
    value = values[reference.namespace]
    for step in reference.steps:
        if isinstance(value, str):
            value = _cached_json(value, read)
        is_there = (
            step in value if isinstance(value, Mapping) else isinstance(value, list) and step in range(len(value))
        )
        if not is_there:
            raise _no_value(reference)
        value = value[step]
    return value


def _cached_json(text: str, read: dict[str, Any]) -> Any:
    """Return the value of a string that is JSON; None for any other."""
    if text not in read:
        read[text] = None
        with suppress(ValueError, RecursionError):
            read[text] = read_json(text) if len(text) <= MAX_JSON else None
    return read[text]


def _no_value(reference: TemplateReference) -> TemplateError:
    if reference.namespace == "sample" and reference.steps[0] == "output_json":
        return TemplateError(f"'{reference}' has no value: the output is not such JSON.", "sample_parse_error")
    return TemplateError(f"'{reference}' has no value for this item.", "invalid_variable_error")


def to_text(value: Any) -> str:
    """Return a value as it stands in a text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def strings_of(value: Any) -> Iterator[str]:
    """Yield the strings in a JSON value."""
    if isinstance(value, str):
        yield value
    for member in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings_of(member)


def fill(value: Any, item: Mapping[str, Any]) -> Any:
    """Return a JSON value whose strings are templates, with the values of their placeholders. Raises: TemplateError."""
    if isinstance(value, str):
        return value_of(value, item, {})
    if isinstance(value, dict):
        return {name: fill(member, item) for name, member in value.items()}
    return [fill(member, item) for member in value] if isinstance(value, list) else value


def _parts(text: str) -> Iterator[str | TemplateReference]:
    """Yield the texts and placeholders of a template. Raises: ValueError."""
    first, *rest = text.split("{{")
    yield first
    for piece in rest:
        inside, closed, after = piece.partition("}}")
        if closed:
            yield _reference(inside)
            yield after
        else:
            yield "{{" + piece


def _reference(inside: str) -> TemplateReference:
    path = inside.strip()
    namespace = re.match(r"\w*", path)
    assert namespace is not None
    position, steps = namespace.end(), []
    while position < len(path) and (step := _STEP.match(path, position)):
        name, index, *quoted = step.groups()
        steps.append(int(index) if index else name or next(filter(None, quoted)))
        position = step.end()
    if namespace.group() not in NAMESPACES or position < len(path):
        raise ValueError(f"'{{{{{inside[:_SHOWN]}}}}}' is not a path into 'item' or 'sample'.")
    return TemplateReference(namespace.group(), tuple(steps))
