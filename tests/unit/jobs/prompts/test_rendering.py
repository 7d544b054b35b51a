"""Variables of prompts: listed or found, bound to values of their types, and inserted in one pass."""

from typing import Any

import pytest

from jobs.errors import InvalidRequest
from jobs.prompts import rendering
from jobs.prompts.rendering import Renderer, bind, complete_variables

IMAGE = {"type": "input_image", "image_url": "https://example.com/a.png"}
FILE = {"type": "input_file", "file_id": "file-1"}


def content(text: Any = "", *variables: dict[str, Any], role: str = "user", instructions: str = "") -> dict[str, Any]:
    listed = [{"type": "string", **variable} for variable in variables]
    return {"instructions": instructions, "messages": [{"role": role, "content": text}], "variables": listed}


def rendered(text: Any, *variables: dict[str, Any], **given: Any) -> Any:
    return Renderer(bind(complete_variables(content(text, *variables)), given)).content(text)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{{a}} {{ b }} {{a}}", ["a", "b"]),
        ("{{}} {{a b}} {{ item.x }} {a} {{1a}} {{{a}}}", ["a"]),
        ("{{a-b_1}}{{A}}", ["a-b_1", "A"]),
        ([{"type": "input_text", "text": "{{a}}"}, {"type": "input_image", "image_url": "{{b}}"}], ["a", "b"]),
    ],
)
def test_used_variables_are_found(text: Any, names: list[str]) -> None:
    assert [variable["name"] for variable in complete_variables(content(text))] == names


def test_listed_variables_keep_their_definition() -> None:
    variables = complete_variables(content("{{a}}", {"name": "b"}, {"name": "a", "type": "json", "required": False}))

    assert {variable["name"]: (variable["type"], variable["required"]) for variable in variables} == {
        "a": ("json", False), "b": ("string", True),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "variable", "given", "expected"),
    [
        ("<{{a}}>", {}, "x", "<x>"),
        ("<{{a}}>", {}, "{{a}} \\1", "<{{a}} \\1>"),
        ("<{{a}}>", {"default": "d"}, None, "<d>"),
        ("<{{a}}>", {"required": False}, None, "<>"),
        ("<{{a}}>", {"type": "number"}, 1.5, "<1.5>"),
        ("<{{a}}>", {"type": "boolean"}, False, "<false>"),
        ("<{{a}}>", {"type": "json"}, {"b": ["é"]}, '<{"b":["é"]}>'),
        ("<{{a}}>", {"type": "json"}, "text", "<text>"),
        ("see {{a}}!", {"type": "image"}, IMAGE,
         [{"type": "input_text", "text": "see "}, IMAGE, {"type": "input_text", "text": "!"}]),
        ("{{a}}", {"type": "file"}, FILE, [FILE]),
        ("<{{a}}>", {"type": "file", "required": False}, None, "<>"),
        ([{"type": "input_text", "text": "{{a}}b"}], {"type": "image"}, IMAGE,
         [IMAGE, {"type": "input_text", "text": "b"}]),
        ([{"type": "input_image", "image_url": "https://{{a}}/x"}], {}, "h",
         [{"type": "input_image", "image_url": "https://h/x"}]),
    ],
)  # fmt: skip
def test_values_are_inserted_by_their_types(text: Any, variable: dict[str, Any], given: Any, expected: Any) -> None:
    assert rendered(text, {"name": "a", **variable}, a=given) == expected


@pytest.mark.parametrize(
    ("variable", "given", "code"),
    [
        ({}, {}, "missing_prompt_variables"),
        ({}, {"a": None}, "missing_prompt_variables"),
        ({}, {"a": "x", "b": "y"}, "unknown_prompt_variables"),
        ({}, {"a": 5}, "invalid_type"),
        ({"type": "number"}, {"a": True}, "invalid_type"),
        ({"type": "boolean"}, {"a": 1}, "invalid_type"),
        ({"type": "image"}, {"a": FILE}, "invalid_type"),
        ({"type": "file"}, {"a": "file-1"}, "invalid_type"),
    ],
)
def test_wrong_values_are_refused_with_their_names(variable: dict[str, Any], given: dict[str, Any], code: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        rendered("{{a}}", {"name": "a", **variable}, **given)

    assert (refused.value.param, refused.value.code) == ("prompt.variables", code)
    assert ("'b'" if "b" in given else "'a'") in refused.value.message


@pytest.mark.parametrize(
    "wrong",
    [
        content("{{a}}", {"name": "a"}, {"name": "a"}),
        content("{{a}}", {"name": "a", "default": 1}),
        content("{{a}}", {"name": "a", "type": "image"}, role="assistant"),
        content("", {"name": "a", "type": "file"}, instructions="{{a}}"),
        content([{"type": "input_image", "image_url": "{{a}}"}], {"name": "a", "type": "image"}),
        content("".join(f"{{{{v{n}}}}}" for n in range(rendering.MAX_VARIABLES + 1))),
    ],
)
def test_variables_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        complete_variables(wrong)

    assert (refused.value.param, refused.value.code) == ("variables", "invalid_variable")


def test_long_value_is_not_inserted_without_end() -> None:
    with pytest.raises(InvalidRequest, match="more than"):
        rendered("{{a}}" * 1000, a="x" * (rendering.MAX_INSERTED // 999))
