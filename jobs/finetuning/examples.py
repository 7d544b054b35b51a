"""A row of a training file → a checked example, with OpenAI's errors: code, line and param.

    supervised   {"messages": [...], "tools"?, "parallel_tool_calls"?, "metadata"?}
    dpo          {"input": {"messages": [...], "tools"?}, "preferred_output": [m], "non_preferred_output": [m]}

The outputs of a DPO row may also be spelled `preferred_completion` and `non_preferred_completion`. OpenAI's earlier
`functions`, `function_call` and the role `function` are read as tools. Checks that
need the tokenizer of the base (lengths, prefixes of messages) are made where the tokenizer is loaded.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from jobs.batches.lines import Bad, InputLine, quote
from jobs.clock import read_time

Method = Literal["supervised", "dpo"]
#: OpenAI's lower bound.
MIN_EXAMPLES: Final = 10
ROLES: Final = ("system", "developer", "user", "assistant", "tool")
_SUPERVISED_KEYS: Final = {"messages", "tools", "parallel_tool_calls", "metadata"}
_INPUT_KEYS: Final = {"messages", "tools", "parallel_tool_calls"}
#: The two spellings of the outputs of a DPO row.
_OUTPUTS: Final = (("preferred_output", "preferred_completion"), ("non_preferred_output", "non_preferred_completion"))
_DPO_KEYS: Final = {"input", "metadata", *_OUTPUTS[0], *_OUTPUTS[1]}
_MESSAGE_KEYS: Final = {"role", "content", "name", "weight", "tool_calls", "tool_call_id", "refusal"}


#: What JSON may spell half of a surrogate pair with.
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


class _Refused(Exception):
    """The row cannot be trained on."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


def check(text: InputLine, method: Method, *, timed: bool = False) -> dict[str, Any] | Bad:
    """Return the row, or what is wrong with it. With `timed` its `metadata.time` must be a time."""
    if text.raw is None:
        return Bad("line_too_long", "This line is too long.", text.number)
    try:
        row = convert_functions(_parse_row(text.raw))
        if method == "dpo":
            _check_preference(row)
        else:
            _check_supervised(row)
        if timed:
            time_of(row)
    except _Refused as error:
        return Bad(error.code, str(error), text.number, error.param)
    return row


def convert_functions(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with `functions`, `function_call` and the role `function` in the spelling of tools."""
    if isinstance(given := row.get("input"), dict):
        row = row | {"input": _convert_functions(given)}
    for name in (*_OUTPUTS[0], *_OUTPUTS[1]):
        if isinstance(row.get(name), list):
            row = row | {name: _calls(row[name])}
    return _convert_functions(row)


def _convert_functions(value: dict[str, Any]) -> dict[str, Any]:
    if "functions" in value and "tools" not in value:
        tools = functions = value["functions"]
        if isinstance(functions, list):
            tools = [{"type": "function", "function": function} for function in functions]
        value = {name: item for name, item in value.items() if name != "functions"} | {"tools": tools}
    return value | {"messages": _calls(value["messages"])} if isinstance(value.get("messages"), list) else value


def _calls(messages: list[Any]) -> list[Any]:
    """Return messages whose function calls are tool calls, each answered by the next message of the role `function`."""
    calls, read = 0, []
    for message in messages:
        if isinstance(message, dict) and "function_call" in message:
            renamed = {name: value for name, value in message.items() if name != "function_call"}
            if (call := message["function_call"]) is not None:
                calls += 1
                renamed["tool_calls"] = [{"id": f"call_{calls}", "type": "function", "function": call}]
            read.append(renamed)
        elif isinstance(message, dict) and message.get("role") == "function":
            read.append(message | {"role": "tool", "tool_call_id": f"call_{calls}"})
        else:
            read.append(message)
    return read


def time_of(row: Mapping[str, Any]) -> float:
    """Return the `metadata.time` of a row, in seconds. Raises an error that `check` reports when there is none."""
    metadata = row.get("metadata")
    value = metadata.get("time") if isinstance(metadata, dict) else None
    try:
        return read_time(value)
    except ValueError:
        message = "Temporal validation needs a `metadata.time`: seconds, or a time as ISO 8601 writes it."
        raise _Refused("invalid_value", message, "metadata.time") from None


def _parse_row(raw: bytes) -> dict[str, Any]:
    try:
        row = json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise _Refused("invalid_json_line", "This line is not parseable as valid JSON.") from None
    if not isinstance(row, dict):
        raise _Refused("invalid_type", "Each line must be a JSON object.")
    if _SURROGATE.search(raw) and not _is_text(row):
        raise _Refused("invalid_value", "A text of this line has half of a surrogate pair, which is no character.")
    return row


def _is_text(row: Mapping[str, Any]) -> bool:
    """Return whether a row can be written as UTF-8."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _check_supervised(row: Mapping[str, Any]) -> None:
    _check_keys(row, _SUPERVISED_KEYS, "")
    _check_tools(row.get("tools"), "tools")
    messages = _check_messages(row.get("messages"), "messages")
    if messages[-1]["role"] != "assistant":
        last = f"messages[{len(messages) - 1}].role"
        raise _Refused("invalid_value", "The last message must be of the role 'assistant'.", last)
    if not any(message["role"] == "assistant" and message.get("weight") != 0 for message in messages):
        message = "At least one message of the role 'assistant' must have a weight other than 0."
        raise _Refused("invalid_value", message, "messages")


def _check_preference(row: Mapping[str, Any]) -> None:
    _check_keys(row, _DPO_KEYS, "")
    given = row.get("input")
    if not isinstance(given, dict):
        raise _wrong_type("input", "an object", given)
    _check_keys(given, _INPUT_KEYS, "input.")
    _check_tools(given.get("tools"), "input.tools")
    messages = _check_messages(given.get("messages"), "input.messages")
    if messages[-1]["role"] == "assistant":
        last = f"input.messages[{len(messages) - 1}].role"
        raise _Refused("invalid_value", "The last message of the input must not be of the role 'assistant'.", last)
    for spellings in _OUTPUTS:
        _check_output(row, spellings)


def _check_output(row: Mapping[str, Any], spellings: tuple[str, str]) -> None:
    names = [name for name in spellings if row.get(name) is not None]
    if len(names) == 2:
        raise _Refused("invalid_value", f"'{names[0]}' and '{names[1]}' mean the same: give one.", names[1])
    name = names[0] if names else spellings[0]
    output = _check_messages(row.get(name), name)
    if len(output) != 1 or output[0]["role"] != "assistant":
        raise _Refused("invalid_value", f"'{name}' must have exactly one message, of the role 'assistant'.", name)


def _check_messages(messages: Any, param: str) -> Sequence[dict[str, Any]]:
    if messages is None:
        raise _Refused("missing_required_parameter", f"Missing required parameter: '{param}'.", param)
    if not isinstance(messages, list):
        raise _wrong_type(param, "an array", messages)
    if not messages:
        raise _Refused("empty_array", f"Invalid '{param}': empty array. Expected at least one message.", param)
    for position, message in enumerate(messages):
        _check_message(message, f"{param}[{position}]")
    return messages


def _check_message(message: Any, param: str) -> None:
    if not isinstance(message, dict):
        raise _wrong_type(param, "an object", message)
    _check_keys(message, _MESSAGE_KEYS, f"{param}.")
    role = message.get("role")
    if role not in ROLES:
        shown = "null" if role is None else f"'{quote(str(role))}'"
        supported = ", ".join(f"'{name}'" for name in ROLES)
        message_text = f"Invalid value: {shown}. Supported values are: {supported}."
        raise _Refused("invalid_value", message_text, f"{param}.role")
    _check_weight(message, role, param)
    _check_tool_calls(message, role, param)
    if role == "tool" and not isinstance(message.get("tool_call_id"), str):
        raise _Refused(
            "missing_required_parameter", "A tool's message needs a 'tool_call_id'.", f"{param}.tool_call_id"
        )
    _check_content(message, param)


def _check_weight(message: Mapping[str, Any], role: str, param: str) -> None:
    weight = message.get("weight")
    if weight is None:
        return
    if role != "assistant":
        raise _Refused("invalid_value", "Only messages of the role 'assistant' have a weight.", f"{param}.weight")
    if isinstance(weight, bool) or weight not in (0, 1):
        raise _Refused("invalid_value", "A weight is 0 or 1.", f"{param}.weight")


def _check_content(message: Mapping[str, Any], param: str) -> None:
    content = message.get("content")
    if isinstance(content, list):
        for position, part in enumerate(content):
            _check_part(part, f"{param}.content[{position}]")
        content = "".join(part["text"] for part in content)
    if content is not None and not isinstance(content, str):
        raise _wrong_type(f"{param}.content", "a string or an array", content)
    if not content and not message.get("tool_calls"):
        raise _Refused("invalid_value", "The message is empty.", f"{param}.content")


def _check_part(part: Any, param: str) -> None:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise _Refused("invalid_value", "Only parts of the type 'text' can be trained on.", param)


def _check_tool_calls(message: Mapping[str, Any], role: str, param: str) -> None:
    calls = message.get("tool_calls")
    if calls is None:
        return
    where = f"{param}.tool_calls"
    if role != "assistant":
        raise _Refused("invalid_value", "Only messages of the role 'assistant' call tools.", where)
    if not isinstance(calls, list):
        raise _wrong_type(where, "an array", calls)
    for position, call in enumerate(calls):
        _check_tool_call(call, f"{where}[{position}]")


def _check_tool_call(call: Any, param: str) -> None:
    function = _function(call)
    if function is None:
        raise _Refused("invalid_value", "A tool call needs a 'function' with a 'name'.", f"{param}.function")
    arguments = function.get("arguments", "{}")
    try:
        is_object = isinstance(json.loads(arguments), dict)
    except (TypeError, ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise _Refused(
            "invalid_value", "The arguments are not a JSON object in a string.", f"{param}.function.arguments"
        )


def _function(value: Any) -> dict[str, Any] | None:
    """Return the named function of a tool or of a tool call, or None when there is none."""
    function = value.get("function") if isinstance(value, dict) else None
    named = isinstance(function, dict) and isinstance(function.get("name"), str) and function["name"]
    return function if named else None


def _check_tools(tools: Any, param: str) -> None:
    if tools is None:
        return
    if not isinstance(tools, list):
        raise _wrong_type(param, "an array", tools)
    for position, tool in enumerate(tools):
        function = _function(tool)
        if function is None or tool.get("type", "function") != "function":
            message = "A tool is of the type 'function', and its 'function' has a 'name'."
            raise _Refused("invalid_value", message, f"{param}[{position}]")
        if not isinstance(function.get("parameters", {}), dict):
            raise _wrong_type(f"{param}[{position}].function.parameters", "an object", function["parameters"])


def _check_keys(value: Mapping[str, Any], known: set[str], prefix: str) -> None:
    unknown = next((name for name in value if name not in known), None)
    if unknown is not None:
        name = f"{prefix}{quote(unknown)}"
        raise _Refused("unknown_parameter", f"Unknown parameter: '{name}'.", name)


def _wrong_type(param: str, expected: str, value: Any) -> _Refused:
    if value is None:
        return _Refused("missing_required_parameter", f"Missing required parameter: '{param}'.", param)
    return _Refused("invalid_type", f"Invalid type for '{param}': expected {expected}.", param)


def canonical(row: Mapping[str, Any]) -> bytes:
    """Return the row's content in one spelling, without its metadata: equal rows are duplicates."""
    return b"".join(_canonical(row))


def _canonical(row: Mapping[str, Any]) -> Iterator[bytes]:
    for name in sorted(row):
        if name != "metadata":
            yield json.dumps([name, row[name]], sort_keys=True, ensure_ascii=False).encode()
