"""Definitions of graders: what is accepted, what is refused and at which field."""

from typing import Any

import pytest
from openai.types.graders import LabelModelGrader, ScoreModelGrader, StringCheckGrader, TextSimilarityGrader
from pydantic import TypeAdapter, ValidationError

from jobs.errors import InvalidRequest, Unavailable
from jobs.evals import graders
from jobs.evals.availability import check_available
from jobs.evals.graders.base import GradingParts
from jobs.evals.graders.python import MAX_SOURCE_BYTES

STRING: dict[str, Any] = {
    "type": "string_check", "name": "same", "input": "{{ sample.output_text }}", "operation": "eq",
    "reference": "{{ item.answer }}",
}  # fmt: skip
SIMILAR = {
    "type": "text_similarity", "name": "alike", "input": "{{ sample.output_text }}", "evaluation_metric": "rouge_l",
    "reference": "{{ item.answer }}", "pass_threshold": 0.8,
}  # fmt: skip
LABEL = {
    "type": "label_model", "name": "tone", "model": "judge", "labels": ["good", "bad"], "passing_labels": ["good"],
    "input": [{"role": "user", "content": "Judge {{ item.text }}"}],
}  # fmt: skip
SCORE = {
    "type": "score_model", "name": "quality", "model": "judge", "range": [1, 7], "pass_threshold": 5.5,
    "input": [
        {"role": "system", "content": "Be strict."},
        {
            "role": "user", "type": "message",
            "content": [
                {"type": "input_text", "text": "{{ item.text }}"},
                {"type": "input_image", "image_url": "{{ item.image }}", "detail": "low"},
                {"type": "input_audio", "input_audio": {"data": "{{ item.sound }}", "format": "wav"}},
                "plain {{ sample.output_text }}",
            ],
        },
    ],
    "sampling_params": {"temperature": 1, "max_completions_tokens": 64, "seed": None},
}  # fmt: skip
PYTHON = {
    "type": "python",
    "name": "code",
    "source": "def grade(sample, item):\n    return 1.0",
    "image_tag": "2025-05-08",
}
FAITHFUL = {
    "type": "faithfulness", "name": "faithful", "input": "{{ sample.output_text }}", "context": "{{ item.contexts }}",
}  # fmt: skip
RANKING = {
    "type": "ranking", "name": "rank", "input": "{{ item.files }}", "reference": "{{ item.relevant }}",
    "evaluation_metric": "ndcg", "k": 10,
}  # fmt: skip
MULTI = {"type": "multi", "name": "both", "graders": {"a": STRING, "b": SIMILAR}, "calculate_output": "0.5 * a + b / 2"}


@pytest.mark.parametrize(
    "definition", [STRING, SIMILAR, LABEL, SCORE, PYTHON, MULTI, FAITHFUL, RANKING], ids=lambda given: given["type"]
)
def test_a_definition_is_stored_as_it_was_given(definition: dict[str, Any]) -> None:
    stored = graders.dump_grader(graders.parse_grader(definition))
    expected = definition
    if definition is SCORE:
        expected = {**SCORE, "sampling_params": {"temperature": 1, "max_completions_tokens": 64}}
    assert stored == expected
    assert graders.dump_grader(graders.parse_grader(stored)) == stored


@pytest.mark.parametrize(
    ("definition", "model"),
    [
        (STRING, StringCheckGrader),
        (SIMILAR, TextSimilarityGrader),
        (LABEL, LabelModelGrader),
        (SCORE, ScoreModelGrader),
    ],
    ids=lambda given: given.get("type") if isinstance(given, dict) else None,
)
def test_stored_definition_is_readable_by_sdk(definition: dict[str, Any], model: Any) -> None:
    read = TypeAdapter(model).validate_python(graders.dump_grader(graders.parse_grader(definition)))
    assert (read.type, read.name) == (definition["type"], definition["name"])


def without(definition: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in definition.items() if key != name}


@pytest.mark.parametrize(
    ("definition", "field"),
    [
        (without(STRING, "name"), "name"),
        ({**STRING, "name": ""}, "name"),
        ({**STRING, "operation": "neq"}, "operation"),
        ({**STRING, "input": "{{ other.x }}"}, "input"),
        ({**STRING, "reference": 7}, "reference"),
        ({**STRING, "pass_threshold": 1}, "pass_threshold"),
        ({**STRING, "input": "x" * (graders.templates.MAX_LENGTH + 1)}, "input"),
        ({**SIMILAR, "evaluation_metric": "rouge_6"}, "evaluation_metric"),
        ({**SIMILAR, "pass_threshold": float("nan")}, "pass_threshold"),
        ({**SIMILAR, "pass_threshold": "0.8"}, "pass_threshold"),
        ({**LABEL, "labels": []}, "labels"),
        ({**LABEL, "passing_labels": []}, "passing_labels"),
        ({**LABEL, "input": []}, "input"),
        ({**LABEL, "input": [{"role": "tool", "content": "x"}]}, "role"),
        ({**LABEL, "input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "content"),
        ({**SCORE, "range": [0, float("inf")]}, "range"),
        ({**SCORE, "range": [0]}, "range"),
        ({**SCORE, "range": [0, 1, 2]}, "range"),
        ({**SCORE, "sampling_params": {"temperature": 3}}, "temperature"),
        ({**SCORE, "sampling_params": {"n": 2}}, "n"),
        ({**PYTHON, "source": ""}, "source"),
        ({**PYTHON, "source": "ä" * (MAX_SOURCE_BYTES // 2 + 1)}, "source"),
        ({**FAITHFUL, "context": ["a"]}, "context"),
        ({**FAITHFUL, "input": "{{ sample.nothing }}"}, "input"),
        ({**FAITHFUL, "type": "answer_relevance"}, "model"),
        ({**FAITHFUL, "type": "context_recall", "model": "judge"}, "reference"),
        ({**FAITHFUL, "type": "context_precision", "model": "judge", "input": "x"}, "question"),
        ({**RANKING, "k": 0}, "k"),
        ({**RANKING, "k": 1001}, "k"),
        ({**RANKING, "k": True}, "k"),
        ({**RANKING, "evaluation_metric": "hit"}, "evaluation_metric"),
        ({**MULTI, "graders": {}}, "graders"),
        ({**MULTI, "graders": STRING}, "graders"),
        ({**MULTI, "graders": {"max": STRING}}, "graders"),
        ({**MULTI, "graders": {"a b": STRING}}, "graders"),
        ({**MULTI, "graders": {"lambda": STRING}}, "graders"),
        ({**MULTI, "graders": {"a": STRING, "b": MULTI}}, "graders"),
        ({**MULTI, "graders": {f"g{n}": STRING for n in range(21)}, "calculate_output": "g1"}, "graders"),
        ({**MULTI, "calculate_output": ""}, "calculate_output"),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(definition: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as raised:
        graders.parse_grader(definition)
    assert any(field in error["loc"] for error in raised.value.errors())


@pytest.mark.parametrize(
    ("definition", "words"),
    [
        ({**LABEL, "labels": ["good", "good"]}, "given once"),
        ({**LABEL, "passing_labels": ["fine"]}, "among the 'labels'"),
        ({**SCORE, "range": [7, 1], "pass_threshold": None}, "below the second"),
        ({**SCORE, "range": [1, 1], "pass_threshold": 1}, "below the second"),
        ({**SCORE, "pass_threshold": 8}, "within the 'range'"),
        ({**FAITHFUL, "sampling_params": {}}, "there is none"),
        ({**MULTI, "calculate_output": "a + missing"}, "names 'missing'"),
        ({"type": "magic", "name": "x"}, "magic"),
        ({"name": "x"}, "type"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(definition: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        graders.parse_grader(definition)


def test_a_score_passes_from_the_threshold_on_or_from_the_middle_of_the_range() -> None:
    quality = graders.parse_grader(SCORE)
    assert (quality.passes(5.5), quality.passes(5.4)) == (True, False)
    middle = graders.parse_grader(without(SCORE, "pass_threshold"))
    assert (middle.passes(4), middle.passes(3.9)) == (True, False)
    code = graders.parse_grader(PYTHON)
    assert (code.passes(0.5), code.passes(0.4)) == (True, False)


def test_the_judges_and_references_of_a_grader_are_named_each_once() -> None:
    both = {**MULTI, "graders": {"a": LABEL, "b": SCORE, "c": STRING}, "calculate_output": "a + b + c"}
    grader = graders.parse_grader(both)
    assert graders.judge_models(grader) == ["judge"]
    assert [str(reference) for reference in graders.references_of(grader)] == [
        "item.text", "item.text", "item.image", "item.sound", "sample.output_text", "sample.output_text", "item.answer",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("definition", "code"),
    [
        (PYTHON, "sandbox_unavailable"),
        ({**SIMILAR, "evaluation_metric": "meteor"}, "grader_unavailable"),
        ({**SIMILAR, "evaluation_metric": "cosine"}, "grader_unavailable"),
        ({**SIMILAR, "evaluation_metric": "bertscore"}, "grader_unavailable"),
        ({**MULTI, "graders": {"a": STRING, "b": PYTHON}}, "sandbox_unavailable"),
    ],
    ids=["python", "meteor", "cosine", "bertscore", "multi"],
)
def test_grader_with_unavailable_requirement_is_refused(definition: dict[str, Any], code: str) -> None:
    grader = graders.parse_grader(definition)
    with pytest.raises(InvalidRequest) as raised:
        check_available(grader, GradingParts(), "testing_criteria[0]")
    assert (raised.value.code, raised.value.param) == (code, "testing_criteria[0]")
    whole = GradingParts(runs_python=True, has_wordnet=True, embedding_model="embedder", encodes_tokens=True)
    check_available(grader, whole, "grader")


@pytest.mark.parametrize("definition", [PYTHON, {**MULTI, "graders": {"a": STRING, "b": PYTHON}}])
def test_grader_waits_while_sandbox_support_is_unknown(definition: dict[str, Any]) -> None:
    grader, starting = graders.parse_grader(definition), GradingParts(runs_python=None)

    check_available(grader, starting, "testing_criteria[0]", waits=True)
    with pytest.raises(Unavailable) as raised:
        check_available(grader, starting, "grader")

    assert (raised.value.code, raised.value.param) == ("sandbox_unknown", "grader")


def test_unavailable_sub_grader_is_reported_before_unknown_sandbox() -> None:
    never = {**SIMILAR, "evaluation_metric": "meteor"}
    multi = graders.parse_grader({**MULTI, "graders": {"a": PYTHON, "b": never}, "calculate_output": "a + b"})

    with pytest.raises(InvalidRequest) as raised:
        check_available(multi, GradingParts(runs_python=None), "grader", waits=True)

    assert raised.value.code == "grader_unavailable"
