"""Variables of prompts: `{{name}}` in instructions and messages, and the values that requests give them.

    content ─▶ complete: variables that are used and not listed are strings
    values  ─▶ bind: none missing, none unknown, each of its type ─▶ render: one pass, so that a value inserts no other

A text is inserted as it is, numbers, booleans and `json` as JSON. An image or a file is a part of its own, which cuts
the text around it in two.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from jobs.errors import InvalidRequest

PARAM: Final = "prompt.variables"
MAX_VARIABLES: Final = 100
#: Characters that the values of one request insert, all together: a text may name a long value many times.
MAX_INSERTED: Final = 4 << 20
NAME: Final = r"[A-Za-z_][A-Za-z0-9_-]{0,63}"
_PLACEHOLDER: Final = re.compile(r"\{\{\s*(" + NAME + r")\s*\}\}")
_LISTED: Final = 10  # names in a message
#: The fields of a variable that is used and not listed.
_NEW: Final[Mapping[str, Any]] = {"type": "string", "required": True, "default": None}

Value = str | dict[str, Any]
Content = Mapping[str, Any]


class VariableType(NamedTuple):
    """A type of variables: the check of a value, what a message calls the type, and whether a value is a part."""

    accepts: Callable[[Any], bool]
    title: str
    is_part: bool = False


def _is_part(kind: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and value.get("type") == kind


TYPES: Final[Mapping[str, VariableType]] = {
    "string": VariableType(lambda value: isinstance(value, str), "a string"),
    "number": VariableType(lambda value: isinstance(value, int | float) and not isinstance(value, bool), "a number"),
    "boolean": VariableType(lambda value: isinstance(value, bool), "a boolean"),
    "json": VariableType(lambda _: True, "any JSON value"),
    "image": VariableType(_is_part("input_image"), "a part of the type 'input_image'", is_part=True),
    "file": VariableType(_is_part("input_file"), "a part of the type 'input_file'", is_part=True),
}


def complete_variables(content: Content) -> list[dict[str, Any]]:
    """Return the variables that a content uses, and those that it lists. Raises: InvalidRequest."""
    listed = {variable["name"]: {**_NEW, **variable} for variable in content["variables"]}
    if len(listed) < len(content["variables"]):
        raise _invalid("A name occurs twice.")
    for name, variable in listed.items():
        kind, default = TYPES[variable["type"]], variable["default"]
        if default is not None and not kind.accepts(default):
            raise _invalid(f"The default of '{name}' is not {kind.title}.")
    variables = {**{name: {"name": name, **_NEW} for name in _names(content)}, **listed}
    if len(variables) > MAX_VARIABLES:
        raise _invalid(f"A prompt has at most {MAX_VARIABLES} variables.")
    for name in _names(content, texts_only=True):
        if name in listed and TYPES[listed[name]["type"]].is_part:
            raise _invalid(f"'{name}' is a part, and stands only in the texts of messages of the role 'user'.")
    return list(variables.values())


def check_names(variables: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> None:
    """Check that a request gives all variables that it has to, and no others. Raises: InvalidRequest."""
    names = [variable["name"] for variable in variables]
    needed = [variable["name"] for variable in variables if variable["required"] and variable["default"] is None]
    if unknown := [name for name in given if name not in names]:
        raise _refusal("The prompt has no", unknown, "unknown_prompt_variables")
    if missing := [name for name in needed if given.get(name) is None]:
        raise _refusal("The prompt needs", missing, "missing_prompt_variables")


def bind(variables: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> dict[str, Value]:
    """Return the value of each variable as it is inserted, with the defaults of those not given.

    Raises: InvalidRequest.
    """
    check_names(variables, given)
    bound: dict[str, Value] = {}
    for variable in variables:
        name, kind, value = variable["name"], TYPES[variable["type"]], given.get(variable["name"])
        value = variable["default"] if value is None else value
        if value is not None and not kind.accepts(value):
            message = f"Invalid type for the variable '{name}': expected {kind.title}."
            raise InvalidRequest(message, param=PARAM, code="invalid_type")
        is_whole = kind.is_part or isinstance(value, str)
        bound[name] = "" if value is None else value if is_whole else msgspec.json.encode(value).decode()
    return bound


class Renderer:
    """Insert the values of variables into texts and messages, up to `MAX_INSERTED` characters."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values, self._left = values, MAX_INSERTED
        self._sizes = {name: len(value if isinstance(value, str) else str(value)) for name, value in values.items()}

    def text(self, template: str) -> str:
        """Return a text with the values of its placeholders. Raises: InvalidRequest."""
        return _PLACEHOLDER.sub(lambda match: str(self._value(match[1])), template)

    def content(self, content: str | Sequence[Mapping[str, Any]]) -> str | list[dict[str, Any]]:
        """Return the content of a message: a text, or parts where it has any. Raises: InvalidRequest."""
        if isinstance(content, str):
            parts = self._parts(content)
            return "".join(part["text"] for part in parts) if all("text" in part for part in parts) else parts
        return [filled for part in content for filled in self._fill(part)]

    def _fill(self, part: Mapping[str, Any]) -> list[dict[str, Any]]:
        if part["type"] == "input_text":
            return self._parts(part["text"])
        return [{name: self.text(value) if isinstance(value, str) else value for name, value in part.items()}]

    def _parts(self, template: str) -> list[dict[str, Any]]:
        """Return the texts of a template, and between them the parts that are values."""
        texts, parts = [""], []
        for index, piece in enumerate(_PLACEHOLDER.split(template)):
            value = self._value(piece) if index % 2 else piece
            if isinstance(value, str):
                texts.append(value)
            else:
                parts += [*_text_parts(texts), value]
                texts = []
        return [*parts, *(_text_parts(texts) or ([] if parts else [{"type": "input_text", "text": ""}]))]

    def _value(self, name: str) -> Value:
        self._left -= self._sizes[name]
        if self._left < 0:
            message = f"The variables insert more than {MAX_INSERTED} characters."
            raise InvalidRequest(message, param=PARAM, code="prompt_too_long")
        return self._values[name]


def _text_parts(texts: Iterable[str]) -> list[dict[str, Any]]:
    text = "".join(texts)
    return [{"type": "input_text", "text": text}] if text else []


def _names(content: Content, *, texts_only: bool = False) -> Iterator[str]:
    """Yield the names of the placeholders; with `texts_only` those that no part may stand for."""
    for text, takes_parts in _texts(content):
        if not (texts_only and takes_parts):
            yield from _PLACEHOLDER.findall(text)


def _texts(content: Content) -> Iterator[tuple[str, bool]]:
    """Yield each text that may have placeholders, and whether one of them may be a part."""
    yield content["instructions"] or "", False
    for message in content["messages"]:
        is_users = message["role"] == "user"
        if isinstance(message["content"], str):
            yield message["content"], is_users
            continue
        for part in message["content"]:
            for name, value in part.items():
                if isinstance(value, str):
                    yield value, is_users and name == "text"


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid 'variables': {message}", param="variables", code="invalid_variable")


def _refusal(begin: str, names: Sequence[str], code: str) -> InvalidRequest:
    shown = ", ".join(f"'{name[:64]}'" for name in names[:_LISTED])
    noun = "variable" if len(names) == 1 else "variables"
    return InvalidRequest(f"{begin} {noun} {shown}{', …' * (len(names) > _LISTED)}.", param=PARAM, code=code)
