"""Placeholders of graders' texts: what they insert, what is refused, and that long ones stay cheap."""

import json
import time
from typing import Any

import pytest

from jobs.evals import graders, grading, samples, templates
from jobs.evals.templates import TemplateError

ITEM = {"question": "How many?", "rows": [{"name": "ä"}, 2], "my-field": None, "two words": "x", "open": "{{ item }}"}
SAMPLE = samples.sample_from_text('{"steps": ["one"], "n": 1.5}')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain { text }", "plain { text }"),
        ("Q: {{ item.question }}!", "Q: How many?!"),
        ("{{item.rows[0].name}}{{item.rows[1]}}", "ä2"),
        ("{{ item.rows }}", '[{"name": "ä"}, 2]'),
        ("{{ item.my-field }}", "null"),
        ("{{ item[\"two words\"] }}{{ item['two words'] }}", "xx"),
        ("{{ sample.output_text }}", '{"steps": ["one"], "n": 1.5}'),
        ("{{ sample.output_json.steps[0] }} {{ sample.output_json.n }}", "one 1.5"),
        ("{{ sample.choices[0].message.role }}", "assistant"),
        ("{{ sample.output_tools }}", "[]"),
        ("{{ item.open }}", "{{ item }}"),
        ("not {{ closed", "not {{ closed"),
    ],
)
def test_a_placeholder_inserts_the_value_of_its_path(text: str, expected: str) -> None:
    assert templates.render(templates.check(text), ITEM, SAMPLE) == expected


CALLED = samples.sample_from_message(
    {
        "content": None,
        "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": '{"symbols": [{"name": "ä"}], "n": 2}'}}
        ],
    }
)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("sample.output_tools[0].function.arguments.symbols", '[{"name": "ä"}]'),
        ("sample.output_tools[0].function.arguments.symbols[0].name", "ä"),
        ("sample.output_tools[0].function.arguments['n']", "2"),
        ("sample.choices[0].message.tool_calls[0].function.arguments.n", "2"),
        ("item.text.rows[1]", "y"),
        ("item.twice.inner.a", "1"),
    ],
)
def test_a_path_goes_on_into_a_string_that_is_json(path: str, expected: str) -> None:
    item = {"text": '{"rows": ["x", "y"]}', "twice": json.dumps({"inner": json.dumps({"a": 1})})}

    assert templates.render(templates.check(f"{{{{{path}}}}}"), item, CALLED) == expected
    assert templates.to_text(templates.value_of(f"{{{{ {path} }}}}", item, CALLED)) == expected


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("sample.output_tools[0].function.arguments.none", "invalid_variable_error"),
        ("sample.output_tools[0].function.name.x", "invalid_variable_error"),
        ("item.nan.a", "invalid_variable_error"),
        ("item.number.a", "invalid_variable_error"),
        ("item.long.a", "invalid_variable_error"),
        ("item.deep[0]", "invalid_variable_error"),
        ("sample.output_json.a", "sample_parse_error"),
    ],
)
def test_a_path_into_a_string_that_is_not_such_json_has_no_value(path: str, code: str) -> None:
    long = json.dumps({"a": "x" * templates.MAX_JSON})
    item = {"nan": '{"a": NaN}', "number": "5", "long": long, "deep": "[" * 100_000}

    with pytest.raises(TemplateError) as caught:
        templates.render(templates.check(f"{{{{{path}}}}}"), item, {**CALLED, "output_json": "text"})
    assert caught.value.code == code


def test_a_string_is_read_once_by_all_templates_of_a_grader(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []

    def read(text: str) -> Any:
        texts.append(text)
        return json.loads(text)

    monkeypatch.setattr(templates, "read_json", read)
    messages = [{"role": "user", "content": "{{ item.text.a }}{{ item.text.b }}" * 9}] * 9
    judge = {"type": "score_model", "name": "j", "model": "m", "input": messages}

    asked = grading.requests_of(graders.parse_grader(judge), {"text": '{"a": 1, "b": 2}'}, {})

    assert (len(asked), texts) == (1, ['{"a": 1, "b": 2}'])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" {{ item.rows }}\n", [{"name": "ä"}, 2]),
        ("{{ item.my-field }}", None),
        ("{{ item.rows }}{{ item.rows }}", '[{"name": "ä"}, 2]' * 2),
        ("x {{ item.question }}", "x How many?"),
        ("plain", "plain"),
        ("", ""),
    ],
)
def test_value_of_a_lone_placeholder_is_not_made_a_text(text: str, expected: Any) -> None:
    assert templates.value_of(text, ITEM, SAMPLE) == expected


@pytest.mark.parametrize(
    "text",
    [
        "{{ }}",
        "{{ other.x }}",
        "{{ item.x | upper }}",
        "{{ item. }}",
        "{{ item[ }}",
        "{{ item.__class__() }}",
        "{{ items.x }}",
        "{{ item.rows[-1] }}",
        "{{ sample.secret }}",
        "{{ 1 + 1 }}",
    ],
)
def test_invalid_placeholder_path_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="'"):
        templates.check(text)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{{ item.missing }}", "invalid_variable_error"),
        ("{{ item.question.length }}", "invalid_variable_error"),
        ("{{ item.question[0] }}", "invalid_variable_error"),
        ("{{ item.rows[7] }}", "invalid_variable_error"),
        ("{{ item.rows.name }}", "invalid_variable_error"),
        ("{{ item.__class__ }}", "invalid_variable_error"),
        ("{{ sample.output_json.none }}", "sample_parse_error"),
        ("{{ sample.output_audio.data }}", "invalid_variable_error"),
    ],
)
def test_a_path_without_a_value_is_an_error_with_its_code(text: str, code: str) -> None:
    with pytest.raises(TemplateError, match="has no value") as raised:
        templates.render(templates.check(text), ITEM, SAMPLE)
    assert raised.value.code == code


def test_output_that_is_no_json_has_no_output_json() -> None:
    for text in ("plain", "NaN", "[" * 100_000, ""):
        sample = samples.sample_from_text(text)
        assert sample["output_text"] == text
        with pytest.raises(TemplateError) as raised:
            templates.render("{{ sample.output_json }}", ITEM, sample)
        assert raised.value.code == "sample_parse_error"


def test_the_references_of_a_template_are_listed() -> None:
    references = templates.references("{{ item.a.b[0] }} and {{ sample.output_text }}")
    assert [str(reference) for reference in references] == ["item.a.b[0]", "sample.output_text"]


def test_a_template_cannot_make_a_text_of_any_length() -> None:
    item = {"long": "x" * 1_000_000}
    with pytest.raises(TemplateError, match="longer than"):
        templates.render("{{ item.long }}" * 1000, item, SAMPLE)


def test_braces_without_end_take_time_in_proportion_to_their_number() -> None:
    began = time.monotonic()
    text = "{{" * 100_000
    assert templates.render(templates.check(text), {}, {}) == text
    assert time.monotonic() - began < 30


def test_a_completion_becomes_the_sample_that_templates_see() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [call], "audio": {"data": "AA=="}}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}

    sample = samples.sample_from_completion(body)

    text = "{{ sample.output_tools[0].function.name }}{{ sample.output_text }}{{ sample.output_audio.data }}"
    assert templates.render(text, {}, sample) == "fAA=="
    assert sample["choices"][0]["finish_reason"] == "tool_calls"
