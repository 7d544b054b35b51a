"""A Promptfoo config: its prompts, its models, and its tests once defaults, files and lists are merged.

prompts ── text, files, messages ──▶ ConfigPrompt    tests ── defaultTest, vars ──▶ Test
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

from cli.migrate.promptfoo.assertions import REASONS, RULES, model_of
from cli.migrate.promptfoo.files import (
    SCRIPTS,
    ConfigFolder,
    NoCounterpart,
    Object,
    entries_of,
    file_name,
    load_json,
    load_yaml,
)
from cli.migrate.promptfoo.templates import PathTemplate, parse, resolve_variables

MAX_TESTS: Final = 20_000
_PROMPT_FILES: Final = frozenset({".txt", ".md", ".j2", ".json", ".jsonl", ".yaml", ".yml"})
_ROLES: Final = frozenset({"system", "developer", "user", "assistant"})
#: Files that Promptfoo inserts as something else than their text.
_MEDIA: Final = frozenset(
    {".pdf", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".svg", ".mp3", ".wav", ".mp4", ".webm", ".mov"}
)
#: Parameters of a provider, by their names in a stored prompt.
_PARAMETERS: Final[Mapping[str, str]] = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "max_output_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning",
}
#: Options of a test that change the request or the output, and those that have no effect on either.
_CHANGING: Final = (
    "transform", "postprocess", "transformVars", "prefix", "suffix", "storeOutputAs", "response_format", "tools",
    "functions",
)  # fmt: skip
_SHORT: Final = {
    "javascript": "javascript",
    "fn": "javascript",
    "eval": "javascript",
    "grade": "llm-rubric",
    "python": "python",
}
_ASSERTION: Final = re.compile(
    r"((?:not-)?[a-z][a-z-]*(?::(?:cosine|dot|euclidean))?)(?:\((\d+(?:\.\d+)?)\))?(?::([\s\S]*))?"
)
_THRESHOLDS: Final = {"similar": 0.8}
_LISTS: Final = re.compile(r"(?:not-)?i?contains-(?:any|all)")

Remark = Callable[[str, str, bool], None]


@dataclass(frozen=True, slots=True)
class ConfigPrompt:
    """A prompt: its messages, whose texts are templates."""

    label: str
    messages: tuple[tuple[str, tuple[Object | PathTemplate, ...]], ...]

    @property
    def names(self) -> list[str]:
        """Return the variables, each once."""
        templates = [part for _, parts in self.messages for part in parts if isinstance(part, PathTemplate)]
        return list(dict.fromkeys(name for template in templates for name in template.names))

    def messages_with(self, text: Callable[[PathTemplate], str]) -> list[Object]:
        """Return the messages of a request, with each template as `text` gives it."""
        return [{"role": role, "content": _content(parts, text)} for role, parts in self.messages]

    def question(self) -> str:
        """Return the template of a grader that has all texts of the prompt."""
        texts = [part.to_item() for _, parts in self.messages for part in parts if isinstance(part, PathTemplate)]
        return "\n".join(texts)


@dataclass(frozen=True, slots=True)
class ConfigModel:
    """A model that a config asks, and those of its parameters that come over, in Promptfoo's names."""

    model: str
    config: Object

    @property
    def parameters(self) -> Object:
        """Return the parameters of a stored prompt."""
        named = {_PARAMETERS[name]: value for name, value in self.config.items() if value is not None}
        return named | ({"reasoning": {"effort": named["reasoning"]}} if "reasoning" in named else {})


@dataclass(frozen=True, slots=True)
class Test:
    """A test with one value of each variable, and its assertions as the config has them."""

    __test__ = False

    number: int
    variables: Object
    assertions: list[Any]
    threshold: float | None
    options: Object


def _content(parts: tuple[Object | PathTemplate, ...], text: Callable[[PathTemplate], str]) -> Any:
    match parts:
        case (PathTemplate() as template,):
            return text(template)
    return [{"type": "input_text", "text": text(part)} if isinstance(part, PathTemplate) else part for part in parts]


# ── prompts ──


def read_prompts(config: Object, folder: ConfigFolder, remark: Remark) -> list[ConfigPrompt]:
    """Return the prompts of a config that come over."""
    prompts = []
    for label, raw in _prompt_entries(config.get("prompts"), folder, remark):
        try:
            prompts.append(read_prompt(raw, label))
        except NoCounterpart as error:
            remark(f"prompt {_short(label)}", str(error), True)
    return prompts


def read_prompt(raw: Any, label: str) -> ConfigPrompt:
    """Return the prompt of a text, or of messages as JSON or YAML. Raises: NoCounterpart."""
    messages: Any = raw
    if isinstance(raw, str):
        text = raw.strip()
        if re.match(r"\[\s*\{", text):
            messages = load_json(text)
        elif text.startswith("- role:"):
            messages = load_yaml(text)
    if isinstance(messages, str):
        return ConfigPrompt(label, (("user", (parse(messages),)),))
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise NoCounterpart("it is neither a text nor a list of messages")
    return ConfigPrompt(
        label, tuple((_role(message), tuple(map(_part, entries_of(message.get("content"))))) for message in messages)
    )


def _role(message: Object) -> str:
    if message.get("role") not in _ROLES or not message.get("content") or message.get("tool_calls"):
        raise NoCounterpart("one of its messages is not a text of a system, a user or an assistant")
    return str(message["role"])


def _part(part: Any) -> Object | PathTemplate:
    match part:
        case str():
            return parse(part)
        case {"type": "text" | "input_text" | "output_text", "text": str() as text}:
            return parse(text)
        case {"type": "image_url", "image_url": {"url": str() as url}} if "{{" not in url:
            return {"type": "input_image", "image_url": url}
    raise NoCounterpart("one of its messages has a part that is neither a text nor an image")


def _prompt_entries(value: Any, folder: ConfigFolder, remark: Remark) -> Iterator[tuple[str, Any]]:
    """Yield the label and the text, or messages, of each prompt, those of files too."""
    for entry in entries_of(value):
        label = entry.get("label") if isinstance(entry, dict) else None
        raw = (entry.get("raw") or entry.get("id")) if isinstance(entry, dict) else entry
        try:
            for number, text in enumerate(_texts_of_prompt(raw, folder)):
                name = label if isinstance(label, str) else raw if file_name(raw) is not None else text
                yield _short(f"{name} {number + 1}" if number else name), text
        except NoCounterpart as error:
            remark(f"prompt {_short(label or raw)}", str(error), True)


def _texts_of_prompt(raw: Any, folder: ConfigFolder) -> Iterator[Any]:
    """Yield the prompts of an entry: a text, or those of the files that it names. Raises: NoCounterpart."""
    name = file_name(raw)
    if name is None and isinstance(raw, str) and "\n" not in raw and Path(raw[:255]).suffix in _PROMPT_FILES | SCRIPTS:
        name = raw
    if name is None:
        if isinstance(raw, str) and re.match(r"(?:langfuse|portkey|helicone|exec|package):", raw):
            raise NoCounterpart("it is kept by another service, or made by a program")
        yield raw
        return
    if Path(name.partition(":")[0]).suffix in SCRIPTS:
        raise NoCounterpart("it is a program, which only Promptfoo runs")
    for match in folder.matches(name):
        suffix = Path(match).suffix
        if suffix == ".jsonl":
            yield from folder.value(match)
        elif suffix in (".json", ".yaml", ".yml"):
            value = folder.value(match)
            yield value if isinstance(value, list) else json.dumps(value)
        else:
            text = folder.text(match)
            yield from filter(None, map(str.strip, text.split("---") if suffix == ".txt" else [text]))


def prompt_object(prompt: ConfigPrompt, providers: list[ConfigModel], values: Mapping[str, Any]) -> Object:
    """Return the prompt as it is stored, with one version. `values` are examples of its variables.

    Raises: NoCounterpart.
    """
    model = providers[0] if len(providers) == 1 else None
    version = {
        "version": "1",
        "model": model and model.model,
        "instructions": None,
        "messages": prompt.messages_with(PathTemplate.to_prompt),
        "parameters": model.parameters if model else {},
        "variables": [
            {"name": name, "type": "json" if isinstance(values.get(name), dict | list) else "string"}
            for name in prompt.names
        ],
    }
    return {"id": f"pmpt_{digest(prompt.label, version)}", "name": prompt.label, "versions": [version]}


# ── models ──


def read_providers(config: Object, folder: ConfigFolder, remark: Remark) -> list[ConfigModel]:
    """Return the models of a config; a remark for each provider that is none."""
    providers = []
    for entry in _provider_entries(config.get("providers") or config.get("targets"), folder, remark):
        name = entry if isinstance(entry, str) else entry.get("id") if isinstance(entry, dict) else None
        settings = entry.get("config") if isinstance(entry, dict) else None
        settings = settings if isinstance(settings, dict) else {}
        try:
            provider = ConfigModel(
                model_of(name), {key: value for key, value in settings.items() if key in _PARAMETERS}
            )
        except NoCounterpart as error:
            remark(f"provider {_short(name)}", str(error), True)
            continue
        providers.append(provider)
        if others := sorted(settings.keys() - _PARAMETERS.keys()):
            remark(f"provider {_short(name)}", f"its settings do not come over: {', '.join(others)[:200]}", False)
    return providers


def _provider_entries(value: Any, folder: ConfigFolder, remark: Remark) -> Iterator[Any]:
    for entry in entries_of(value):
        if (name := file_name(entry)) is not None:
            try:
                yield from entries_of(folder.value(name))
            except NoCounterpart as error:
                remark(f"provider {_short(entry)}", str(error), True)
        elif isinstance(entry, dict) and "id" not in entry:
            yield from ({"id": name, **(given if isinstance(given, dict) else {})} for name, given in entry.items())
        else:
            yield entry


# ── tests ──


def read_tests(config: Object, folder: ConfigFolder, remark: Remark) -> list[Test]:
    """Return the tests of a config that come over, one for each set of variables. Raises: NoCounterpart."""
    default = config.get("defaultTest") or {}
    if (name := file_name(default)) is not None:
        default = folder.value(name)
    if not isinstance(default, dict):
        raise NoCounterpart("its defaultTest is not an object")
    tests: list[Test] = []
    for number, test in enumerate(_config_tests(config.get("tests"), folder, remark), 1):
        try:
            merged = merge_test(test, default)
            for variables in _variable_sets(merged, folder):
                tests.append(_test(len(tests), merged, resolve_variables(variables), folder))
                if len(tests) > MAX_TESTS:
                    raise NoCounterpart(f"there are more than {MAX_TESTS} tests")
        except NoCounterpart as error:
            remark(f"test {number}", str(error), True)
            if len(tests) > MAX_TESTS:
                break
    return tests[:MAX_TESTS]


def merge_test(test: Object, default: Object) -> Object:
    """Return a test with what it takes from the default test. Raises: NoCounterpart."""
    merged = {**default, **test}
    for name in ("vars", "options", "metadata"):
        values = [part.get(name) or {} for part in (default, test)]
        if isinstance(values[1], str | list) and name == "vars":
            merged[name] = values[1]
        elif all(isinstance(value, dict) for value in values):
            merged[name] = {**values[0], **values[1]}
        else:
            raise NoCounterpart(f"its '{name}' is not an object")
    defaults = [] if merged["options"].get("disableDefaultAsserts") else default.get("assert") or []
    merged["assert"] = [*entries_of(defaults), *entries_of(test.get("assert"))]
    return merged


def _test(number: int, merged: Object, variables: Object, folder: ConfigFolder) -> Test:
    """Return a test. Raises: NoCounterpart, where something else decides the request or the grades."""
    options = merged["options"]
    if changing := [name for name in _CHANGING if options.get(name)]:
        raise NoCounterpart(f"its options change the request or the output: {', '.join(changing)}")
    if merged.get("providerOutput") is not None:
        raise NoCounterpart("its answer is given with it: no model is asked")
    if merged.get("assertScoringFunction"):
        raise NoCounterpart("a program of its own computes its score")
    threshold = merged.get("threshold")
    assertions: list[Any] = []
    for assertion in merged["assert"]:
        name = file_name(assertion)
        assertions += [assertion] if name is None else entries_of(folder.value(name))
    is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    return Test(number, variables, assertions, threshold if is_number else None, options)


def result_test(case: Object, number: int, variables: Any, folder: ConfigFolder) -> Test:
    """Return the test of a result, which has one value of each variable already. Raises: NoCounterpart."""
    given = variables if isinstance(variables, dict) else case.get("vars")
    merged = merge_test({**case, "vars": given if isinstance(given, dict) else {}}, {})
    return _test(number, merged, resolve_variables(_load_files(merged["vars"], folder)), folder)


def _config_tests(value: Any, folder: ConfigFolder, remark: Remark) -> Iterator[Object]:
    """Yield the tests that are written in a config and in the files that it names."""
    for entry in entries_of(value):
        try:
            yield from _tests_of_entry(entry, folder)
        except NoCounterpart as error:
            remark(f"tests {_short(entry)}" if isinstance(entry, str) else "tests", str(error), True)


def _tests_of_entry(entry: Any, folder: ConfigFolder) -> Iterator[Object]:
    if isinstance(entry, dict):
        if isinstance(entry.get("path"), str):
            raise NoCounterpart(f"{entry['path'][:100]!r} makes tests by a program")
        yield entry
        return
    if not isinstance(entry, str) or re.match(r"(?!file:)[a-z]+://", entry):
        raise NoCounterpart("they lie elsewhere: save them in a file first")
    for name in folder.matches(entry.removeprefix("file://")):
        for row in entries_of(folder.value(name)):
            if not isinstance(row, dict):
                raise NoCounterpart(f"{name!r} has no tests")
            yield row_test(row) if name.endswith(".csv") else row


def row_test(row: Mapping[str, str]) -> Object:
    """Return the test of a row of CSV. Raises: NoCounterpart."""
    plain = {name: value for name, value in row.items() if not name.startswith("__")}
    special = {name: value for name, value in row.items() if name.startswith("__") and value.strip()}
    metric = {"metric": special.pop("__metric")} if "__metric" in special else {}
    test: Object = {"vars": plain, "assert": []}
    for column, value in special.items():
        if column.startswith("__expected"):
            test["assert"].append(assertion_of_text(value) | metric)
        elif column == "__threshold" and re.fullmatch(r"\d*\.?\d+", value.strip()):
            test["threshold"] = float(value)
        elif column != "__description" and not column.startswith("__metadata:"):
            raise NoCounterpart(f"its column {column[:60]!r} is not known here")
    return test


def assertion_of_text(text: str) -> Object:
    """Return the assertion of a cell of CSV: `type(threshold): value`, or a text that is expected."""
    if (name := file_name(text)) is not None and (code := re.search(r"\.(py|[cm]?[jt]s)(?::|$)", name)):
        return {"type": "python" if code[1] == "py" else "javascript", "value": text}
    kind, colon, value = text.partition(":")
    if colon and kind in _SHORT:
        return {"type": _SHORT[kind], "value": value.strip() if kind != "grade" else value}
    match = _ASSERTION.fullmatch(text)
    if match is None or match[1].removeprefix("not-") not in RULES.keys() | REASONS.keys():
        return {"type": "equals", "value": text}
    value = match[3]
    assertion: Object = {"type": match[1], "value": value}
    if _LISTS.fullmatch(match[1]):
        assertion["value"] = [part.strip() for part in (value or "").split(",")]
    if (threshold := float(match[2]) if match[2] else _THRESHOLDS.get(match[1])) is not None:
        assertion["threshold"] = threshold
    return assertion


def _variable_sets(test: Object, folder: ConfigFolder) -> Iterator[Object]:
    """Yield the sets of variables of a test: one for each combination of the values in lists. Raises: NoCounterpart."""
    variables = test["vars"]
    if not isinstance(variables, dict):
        read = [
            folder.value(name)
            for entry in entries_of(variables)
            for name in folder.matches(str(entry).removeprefix("file://"))
        ]
        if not all(isinstance(value, dict) for value in read):
            raise NoCounterpart("its file of variables has no object")
        variables = {name: value for values in read for name, value in values.items()}
    choices = [_choices(value, folder, test["options"]) for value in variables.values()]
    for values in product(*choices):
        yield _load_files(dict(zip(variables, values, strict=True)), folder)


def _choices(value: Any, folder: ConfigFolder, options: Object) -> list[Any]:
    if (name := file_name(value)) is not None and "*" in name:
        return [f"file://{match}" for match in folder.matches(name)]
    is_list = isinstance(value, list) and bool(value) and isinstance(value[0], str)
    return value if is_list and not options.get("disableVarExpansion") else [value]


def _load_files(variables: Object, folder: ConfigFolder) -> Object:
    """Return variables with the content of the files that they name. Raises: NoCounterpart."""
    return {name: _file_content(value, folder) for name, value in variables.items()}


def _file_content(value: Any, folder: ConfigFolder) -> Any:
    name = file_name(value)
    if name is None:
        return value
    suffix = Path(name).suffix.lower()
    if suffix in _MEDIA:
        raise NoCounterpart(f"its variable is the file {name[:100]!r}, which is not a text")
    content = folder.value(name) if suffix in (".yaml", ".yml", *SCRIPTS) else folder.text(name)
    return (
        content.strip() if isinstance(content, str) else json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    )


def digest(*parts: Any) -> str:
    """Return a name of 32 characters for JSON values: the same for the same ones."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _short(value: Any) -> str:
    return " ".join(str(value).split())[:100]
