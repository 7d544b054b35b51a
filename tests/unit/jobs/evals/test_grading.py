"""Grades of single items: scores, errors that are no failures, and what judges are asked."""

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from jobs.evals import graders, samples
from jobs.evals.graders.base import Grade, GradingBudget, GradingError, ModelAnswer, Ports
from jobs.evals.graders.judge import JUDGE_TOKENS
from jobs.evals.grading import grade, requests_of
from jobs.requests.endpoints import CHAT, EMBEDDINGS

ITEM = {"answer": "Paris", "text": "the text"}
SAMPLE = samples.sample_from_text("Paris is it")
NONE = Ports()
MESSAGES = [{"role": "user", "content": "Judge {{ item.text }}: {{ sample.output_text }}"}]


def string_check(operation: str, reference: str = "{{ item.answer }}", name: str = "same") -> dict[str, Any]:
    text = "{{ sample.output_text }}"
    return {"type": "string_check", "name": name, "input": text, "operation": operation, "reference": reference}


def label(**changes: Any) -> dict[str, Any]:
    labels = {"labels": ["good", "bad"], "passing_labels": ["good"]}
    return {"type": "label_model", "name": "tone", "model": "judge", "input": MESSAGES, **labels, **changes}


def score(**changes: Any) -> dict[str, Any]:
    return {"type": "score_model", "name": "quality", "model": "judge", "input": MESSAGES, **changes}


def multi(formula: str, **parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "multi", "name": "both", "graders": parts, "calculate_output": formula}


def python(source: str = "code") -> dict[str, Any]:
    return {"type": "python", "name": "code", "source": source}


def chat(content: Any, reason: str = "stop", refusal: str | None = None) -> ModelAnswer:
    message = {"role": "assistant", "content": content, "refusal": refusal}
    return ModelAnswer(200, {"choices": [{"index": 0, "message": message, "finish_reason": reason}]})


def graded(definition: dict[str, Any], *answers: ModelAnswer, ports: Ports = NONE, item: Any = ITEM) -> Grade:
    """Grade the item with these answers to the grader's requests, in order."""
    grader = graders.parse_grader(definition)
    keys = [request.key for request in requests_of(grader, item, SAMPLE, ports)]
    return grade(grader, item, SAMPLE, dict(zip(keys, answers, strict=False)), ports)


@pytest.mark.parametrize(
    ("operation", "reference", "passes"),
    [
        ("eq", "Paris is it", True),
        ("eq", "paris is it", False),
        ("eq", "Paris is it ", False),
        ("ne", "Paris", True),
        ("ne", "Paris is it", False),
        ("like", "Paris", True),
        ("like", "paris", False),
        ("like", "%", False),
        ("ilike", "PARIS", True),
        ("ilike", "London", False),
        ("like", "{{ item.answer }}", True),
    ],
)
def test_string_check_compares_or_searches_and_is_not_sql(operation: str, reference: str, passes: bool) -> None:
    result = graded(string_check(operation, reference))
    assert (result.score, result.passed, result.error) == (float(passes), passes, None)


def test_a_field_that_the_item_lacks_is_an_error_and_no_failure() -> None:
    result = graded(string_check("eq", "{{ item.missing }}"))
    assert (result.score, result.passed) == (None, None)
    assert result.error is not None
    assert result.error.code == "invalid_variable_error"
    for definition in (label(), score()):
        result = graded({**definition, "input": [{"role": "user", "content": "{{ item.missing }}"}]})
        assert result.error is not None
        assert (result.score, result.error.code) == (None, "invalid_variable_error")


def test_judge_request_carries_schema_of_answer() -> None:
    [request] = requests_of(graders.parse_grader(label()), ITEM, SAMPLE)
    body = request.body
    schema = body["response_format"]["json_schema"]["schema"]
    check = Draft202012Validator(schema)

    assert (request.url, body["model"], body["temperature"]) == (CHAT, "judge", 0)
    assert body["max_completion_tokens"] == JUDGE_TOKENS
    assert body["response_format"]["json_schema"]["strict"] is True
    assert body["messages"][-1] == {"role": "user", "content": "Judge the text: Paris is it"}
    assert '["good", "bad"]' in body["messages"][0]["content"]
    assert check.is_valid({"steps": [{"description": "a", "conclusion": "b"}], "result": "bad"})
    assert not check.is_valid({"steps": [], "result": "neutral"})
    assert not check.is_valid({"result": "bad"})


@pytest.mark.parametrize("name", ["max_completion_tokens", "max_completions_tokens"])
def test_limit_of_a_judge_has_either_of_its_names(name: str) -> None:
    definition = score(sampling_params={name: 9})
    [request] = requests_of(graders.parse_grader(definition), ITEM, SAMPLE)

    assert (request.body["max_completion_tokens"], request.body.get("max_completions_tokens")) == (9, None)
    assert graders.dump_grader(graders.parse_grader(definition))["sampling_params"] == {name: 9}


def test_limits_of_a_judge_agree() -> None:
    both = {"max_completion_tokens": 9, "max_completions_tokens": 9}
    graders.parse_grader(score(sampling_params=both))

    with pytest.raises(ValidationError, match="have different values"):
        graders.parse_grader(score(sampling_params=both | {"max_completion_tokens": 8}))


def test_the_parameters_of_a_judge_are_those_of_its_grader() -> None:
    system = [{"role": "system", "content": "Be strict."}, *MESSAGES]
    params = {"temperature": 0.7, "top_p": 0.5, "max_completions_tokens": 9, "seed": 3, "reasoning_effort": "low"}
    definition = score(range=[1, 7], input=system, sampling_params=params)
    [request] = requests_of(graders.parse_grader(definition), ITEM, SAMPLE)
    body = request.body

    assert {name: body[name] for name in ("temperature", "top_p", "max_completion_tokens", "seed")} == {
        "temperature": 0.7, "top_p": 0.5, "max_completion_tokens": 9, "seed": 3,
    }  # fmt: skip
    assert body["reasoning_effort"] == "low"
    assert "max_completions_tokens" not in body
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["messages"][0]["content"].startswith("Be strict.")
    assert "from 1 to 7" in body["messages"][0]["content"]


def test_images_and_recordings_go_to_the_judge_in_the_form_of_chats() -> None:
    parts = [
        {"type": "input_text", "text": "See {{ item.text }}"},
        {"type": "input_image", "image_url": "{{ item.image }}", "detail": "low"},
        {"type": "input_audio", "input_audio": {"data": "{{ item.sound }}", "format": "mp3"}},
        "plain",
    ]
    item = {**ITEM, "image": "data:image/png;base64,AA==", "sound": "AA=="}
    [request] = requests_of(graders.parse_grader(label(input=[{"role": "user", "content": parts}])), item, SAMPLE)

    assert request.body["messages"][-1]["content"] == [
        {"type": "text", "text": "See the text"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "mp3"}},
        {"type": "text", "text": "plain"},
    ]


@pytest.mark.parametrize(("result", "passes"), [("good", True), ("bad", False)])
def test_only_passing_label_passes(result: str, passes: bool) -> None:
    steps = [{"description": "read", "conclusion": "fine"}]
    graded_item = graded(label(), chat(json.dumps({"steps": steps, "result": result})))
    assert (graded_item.score, graded_item.passed) == (float(passes), passes)
    assert graded_item.details == {"result": result, "steps": steps}


@pytest.mark.parametrize(
    ("given", "expected", "passes"), [(0.75, 0.75, True), (0, 0.0, False), (9, 1.0, True), (-3.5, 0.0, False)]
)
def test_judge_score_is_clamped_to_range(given: float, expected: float, passes: bool) -> None:
    result = graded(score(), chat(json.dumps({"steps": [], "result": given})))
    assert (result.score, result.passed, result.error) == (expected, passes, None)


NONSENSE = [
    "I would say 0.8", "", "null", "[]", "{}", '{"result": null}', '{"result": "0.8"}', '{"result": true}',
    '{"result": NaN}', '{"result": Infinity}', '{"result": 1e999}', '{"result": ' + "9" * 400 + "}",
    '{"result": [1]}', "[" * 100_000, None,
]  # fmt: skip


@pytest.mark.parametrize("content", NONSENSE, ids=lambda content: str(content)[:20])
def test_a_judge_that_answers_nonsense_makes_an_error_and_no_score(content: str | None) -> None:
    for definition in (label(), score()):
        result = graded(definition, chat(content))
        assert (result.score, result.passed) == (None, None)
        assert result.error is not None
        assert result.error.code == "model_grader_parse_error"
        assert len(result.error.message) < 400


def test_a_label_that_is_none_of_the_labels_is_an_error() -> None:
    result = graded(label(), chat('{"steps": [], "result": "neutral"}'))
    assert result.error is not None
    assert (result.score, result.error.code) == (None, "model_grader_parse_error")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (chat(None, refusal="I cannot."), "model_grader_refusal_error"),
        (chat('{"steps": [{"descr', "length"), "truncated_observation_error"),
        (ModelAnswer(503, {"error": {"message": "No worker."}}), "model_grader_server_error"),
        (ModelAnswer(500, {}), "model_grader_server_error"),
        (ModelAnswer(200, {}), "model_grader_parse_error"),
        (ModelAnswer(200, {"choices": []}), "model_grader_parse_error"),
        (ModelAnswer(200, {"choices": [{"message": None}]}), "model_grader_parse_error"),
    ],
)
def test_a_judge_without_an_answer_makes_an_error_with_its_reason(answer: ModelAnswer, code: str) -> None:
    result = graded(score(), answer)
    assert result.error is not None
    assert (result.score, result.error.code) == (None, code)


def test_missing_judge_answer_is_server_error() -> None:
    result = graded(score())
    assert result.error is not None
    assert result.error.code == "model_grader_server_error"


def test_a_multi_computes_its_score_from_those_of_its_graders() -> None:
    definition = multi("(same + quality) / 2", same=string_check("like"), quality=score())
    result = graded(definition, chat('{"steps": [], "result": 0.5}'))
    assert (result.score, result.passed, result.error) == (0.75, True, None)
    assert {name: sub.score for name, sub in result.sub_grades.items()} == {"same": 1.0, "quality": 0.5}


def test_a_multi_asks_the_judge_of_each_of_its_graders() -> None:
    grader = graders.parse_grader(multi("a + b + c", a=score(), b=string_check("eq"), c=label()))
    assert [request.key for request in requests_of(grader, ITEM, SAMPLE)] == ["a", "c"]


def test_a_multi_that_divides_by_zero_is_an_error() -> None:
    result = graded(multi("1 / same", same=string_check("eq")))
    assert result.error is not None
    assert (result.score, result.error.code) == (None, "formula_parse_error")
    assert result.sub_grades["same"].score == 0.0


def test_multi_grader_has_no_score_if_sub_grader_fails() -> None:
    result = graded(multi("max(same, quality)", same=string_check("like"), quality=score()), chat("nonsense"))
    assert result.error is not None
    assert (result.score, result.error.code) == (None, "model_grader_parse_error")


def test_python_grader_score_is_return_value_of_code() -> None:
    calls = []

    def run(source: str, item: Any, sample: Any, seconds: float) -> float:
        calls.append((source, item["answer"], sample["output_text"]))
        return 0.25

    result = graded(python("the code"), ports=Ports(run_python=run))
    assert (result.score, result.passed) == (0.25, False)
    assert calls == [("the code", "Paris", "Paris is it")]


def test_a_python_grader_that_raises_scores_0_and_is_an_error() -> None:
    def run(source: str, item: Any, sample: Any, seconds: float) -> float:
        raise GradingError("python_grader_runtime_error", "ImportError: no module named 'os2'", 0.0)

    result = graded(python(), ports=Ports(run_python=run))
    assert result.error is not None
    assert (result.score, result.passed, result.error.code) == (0.0, False, "python_grader_runtime_error")
    both = graded(multi("1 + code", code=python()), ports=Ports(run_python=run))
    assert both.error is not None
    assert (both.score, both.error.code) == (1.0, "python_grader_runtime_error")


def test_a_python_grader_without_a_sandbox_is_an_error_and_is_not_run() -> None:
    result = graded(python("raise SystemExit"))
    assert result.error is not None
    assert (result.score, result.error.code) == (None, "python_grader_server_error")


COSINE = {
    "type": "text_similarity", "name": "alike", "input": "{{ sample.output_text }}", "evaluation_metric": "cosine",
    "reference": "{{ item.answer }}",
}  # fmt: skip


def embedding(*vectors: Any) -> ModelAnswer:
    return ModelAnswer(200, {"data": [{"index": n, "embedding": vector} for n, vector in enumerate(vectors)]})


def test_the_cosine_is_that_of_two_vectors_of_the_deployments_model() -> None:
    ports = Ports(embedding_model="embedder")
    [request] = requests_of(graders.parse_grader(COSINE), ITEM, SAMPLE, ports)
    assert (request.url, request.body["model"]) == (EMBEDDINGS, "embedder")
    assert request.body["input"] == ["Paris is it", "Paris"]
    assert graded(COSINE, embedding([1, 0], [1, 1]), ports=ports).score == pytest.approx(0.5**0.5)
    assert graded(COSINE, embedding([3, 4], [3, 4]), ports=ports).score == pytest.approx(1.0)
    assert graded(COSINE, embedding([1, 0], [-1, 0]), ports=ports).score == pytest.approx(-1.0)


@pytest.mark.parametrize(
    "answer",
    [
        embedding([1, 0]), embedding([1], [1, 2]), embedding([0, 0], [1, 1]), embedding(["x"], ["y"]),
        ModelAnswer(200, {}),
        embedding([float("nan"), 1], [1, 1]), ModelAnswer(503, {"error": {"message": "No worker."}}),
    ],
)  # fmt: skip
def test_vectors_that_have_no_cosine_make_an_error(answer: ModelAnswer) -> None:
    result = graded(COSINE, answer, ports=Ports(embedding_model="embedder"))
    assert (result.score, result.error is not None) == (None, True)
    assert graded(COSINE).error is not None


def exact(reference: str, **options: Any) -> dict[str, Any]:
    return {"type": "exact_match", "name": "same", "input": "{{ item.text }}", "reference": reference, **options}


@pytest.mark.parametrize(
    ("text", "reference", "options", "passes"),
    [
        ("Paris", "Paris", {}, True),
        ("Paris", "paris", {}, False),
        ("STRASSE", "straße", {"ignore_case": True}, True),
        ("  New\n York ", "New York", {"ignore_whitespace": True}, True),
        ("«Paris!»", "Paris", {"ignore_punctuation": True}, True),
        ("Paris.", "paris", {"ignore_punctuation": True}, False),
    ],
)
def test_exact_match_ignores_only_configured_differences(text: str, reference: str, options: Any, passes: bool) -> None:
    result = graded(exact(reference, **options), item={"text": text})
    assert (result.score, result.passed) == (float(passes), passes)


def pattern(text: str, **options: Any) -> dict[str, Any]:
    return {"type": "regex", "name": "shape", "input": "{{ item.text }}", "pattern": text, **options}


@pytest.mark.parametrize(
    ("expression", "text", "options", "passes"),
    [
        (r"\d{4}-\d{2}", "on 2026-11-30", {}, True),
        (r"^\d+$", "12a", {}, False),
        ("yes", "YES", {}, False),
        ("yes", "YES", {"ignore_case": True}, True),
    ],
)
def test_regex_searches_the_text(expression: str, text: str, options: Any, passes: bool) -> None:
    assert graded(pattern(expression, **options), item={"text": text}).passed is passes


@pytest.mark.parametrize("expression", ["(a+)+$", "(a|a)*$", "(.*)*x"])
def test_a_hostile_pattern_ends_with_an_answer_or_an_error(expression: str) -> None:
    result = graded(pattern(expression), item={"text": "a" * 5000 + "b"})
    assert result.error is None or result.error.code == "other_error"


def test_a_pattern_that_takes_too_long_is_an_error_and_no_failure() -> None:
    result = graded(pattern("(a|aa)+$"), item={"text": "a" * 5000 + "b"})
    assert result.error is not None
    assert (result.score, result.error.code) == (None, "other_error")
    assert "within 1 second" in result.error.message


@pytest.mark.parametrize("expression", ["(", "[a", "a{2,1}", "*", "(?P<x>a)(?P=y)"])
def test_invalid_regular_expression_is_refused(expression: str) -> None:
    with pytest.raises(ValidationError, match="not a regular expression"):
        graders.parse_grader(pattern(expression))


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def schema(given: Any) -> dict[str, Any]:
    return {"type": "json_schema", "name": "valid", "input": "{{ item.text }}", "schema": given}


def test_json_schema_asks_the_sandbox_with_the_schema_and_the_text() -> None:
    def run(source: str, item: Any, sample: Any, seconds: float) -> float:
        names: dict[str, Any] = {}
        exec(source, names)
        return float(names["grade"](sample, item))

    ports = Ports(run_python=run)
    scores = {
        text: graded(schema(SCHEMA), item={"text": text}, ports=ports).score
        for text in ('{"n": 1}', '{"n": "1"}', "{}", "no JSON", '{"n": NaN}', "[" * 100_000)
    }
    assert scores == {text: float(text == '{"n": 1}') for text in scores}
    assert graders.dump_grader(graders.parse_grader(schema(SCHEMA))) == schema(SCHEMA)


def test_a_schema_that_cannot_be_checked_is_an_error_and_no_failure() -> None:
    def run(source: str, item: Any, sample: Any, seconds: float) -> float:
        raise GradingError("python_grader_runtime_error", "SchemaError: no", 0.0)

    result = graded(schema({"type": "nothing"}), item={"text": "{}"}, ports=Ports(run_python=run))
    assert result.error is not None
    assert (result.score, result.error.code) == (None, "other_error")
    assert graded(schema(SCHEMA), item={"text": "{}"}).error is not None


# Bounds.


def similar(metric: str, text: str, reference: str) -> dict[str, Any]:
    texts = {"input": text, "reference": reference}
    return {"type": "text_similarity", "name": "alike", "evaluation_metric": metric, **texts}


CHINESE = "".join(chr(0x4E00 + 7919 * n * n % 20_000) for n in range(6000))


def test_a_text_that_is_too_long_for_its_metric_is_an_error_before_it_is_compared() -> None:
    for metric, text, reference in (
        ("fuzzy_match", "{{ item.long }}", "x"),
        ("fuzzy_match", "{{ item.text }}", "{{ item.half }}"),
        ("chrf", "{{ item.longest }}", "x"),
    ):
        item = {"text": CHINESE, "half": CHINESE[3300:0:-1], "long": "x" * 10_001, "longest": "x" * 100_001}
        result = graded(similar(metric, text, reference), item=item)
        assert result.error is not None
        assert (result.score, result.error.code) == (None, "other_error")
        assert "too long" in result.error.message or "at most" in result.error.message


def test_graders_of_item_share_text_metric_budget() -> None:
    """20 in a `multi`, and those of other criteria: each alone would be within its bound."""
    item = {"text": CHINESE[:2000], "half": CHINESE[3300:2000:-1]}
    one = similar("fuzzy_match", "{{ item.text }}", "{{ item.half }}")
    assert graded(one, item=item).error is None
    many = graders.parse_grader(multi(" + ".join(f"g{n}" for n in range(20)), **{f"g{n}": one for n in range(20)}))

    budget = GradingBudget()
    results = [grade(many, item, SAMPLE, {}, budget=budget) for _ in range(2)]

    for result in results:
        assert result.error is not None
        assert "all of its text metrics together" in result.error.message
    scored = [sub for result in results for sub in result.sub_grades.values() if sub.score is not None]
    assert 1 <= len(scored) < 12


def test_graders_that_find_no_time_left_say_so_and_have_no_score() -> None:
    given = []

    def run(source: str, item: Any, sample: Any, seconds: float) -> float:
        given.append(seconds)
        return 1.0

    grader = graders.parse_grader(multi("a + b", a=python(), b=string_check("eq")))
    assert grade(grader, ITEM, SAMPLE, {}, Ports(run_python=run), GradingBudget(60.0)).score == 1.0
    assert 0 < given[0] <= 60
    late = grade(grader, ITEM, SAMPLE, {}, Ports(run_python=run), GradingBudget(0.0))
    assert late.error is not None
    assert (late.score, len(given)) == (None, 1)
    assert {sub.score for sub in late.sub_grades.values()} == {None}
    assert "took more than 0 seconds" in late.error.message


def test_no_grader_begins_once_its_run_has_ended() -> None:
    calls = []

    def run(source: str, item: Any, sample: Any, seconds: float) -> float:
        calls.append(source)
        return 1.0

    grader = graders.parse_grader(multi("a + b + c", a=python(), b=python(), c=python()))
    grade(grader, ITEM, SAMPLE, {}, Ports(run_python=run), GradingBudget(stopped=lambda: bool(calls)))
    assert len(calls) == 1


@pytest.mark.parametrize("score", [1e301, -1e301, float("inf"), float("nan")])
def test_a_score_that_could_not_be_summed_up_is_an_error(score: float) -> None:
    result = graded(python(), ports=Ports(run_python=lambda *_: score))
    assert result.error is not None
    assert (result.score, result.error.code) == (None, "other_error")


def test_excessive_formula_value_is_error() -> None:
    result = graded(multi("code * 10 ^ 10", code=python()), ports=Ports(run_python=lambda *_: 1e300))
    assert result.error is not None
    assert (result.score, result.error.code) == (None, "formula_parse_error")
    assert graded(multi("code", code=python()), ports=Ports(run_python=lambda *_: 1e300)).score == 1e300


def test_a_stored_pattern_that_is_refused_today_makes_its_items_errored() -> None:
    definition = pattern("((((((a{9}){9}){9}){9}){9}){9})")
    with pytest.raises(ValidationError, match="repeated at most 1024 times"):
        graders.parse_grader(definition)
    result = grade(graders.parse_grader(definition, is_stored=True), {"text": "a"}, SAMPLE, {})
    assert result.error is not None
    assert (result.score, result.error.code) == (None, "other_error")


@pytest.mark.parametrize(
    ("definition", "result", "person", "verdicts"),
    [
        (label(human="{{ item.person }}"), "good", "bad", ("bad", "good")),
        (label(human="{{ item.person }}"), "bad", "bad", ("bad", "bad")),
        (score(human="{{ item.person }}", range=[1, 7]), 5, 2, ("fail", "pass")),
        (score(human="{{ item.person }}", range=[1, 7]), 5, "6.5", ("pass", "pass")),
        (score(human="{{ item.person }}"), 0.2, True, ("pass", "fail")),
        (score(human="{{ item.person }}"), 0.2, "fail", ("fail", "fail")),
    ],
)
def test_human_verdict_is_recorded_with_judge_verdict(
    definition: dict[str, Any], result: Any, person: Any, verdicts: tuple[str, str]
) -> None:
    grader = graders.parse_grader(definition)

    given = graded(definition, chat(json.dumps({"steps": [], "result": result})), item={**ITEM, "person": person})

    assert (given.details["expected"], given.details["predicted"]) == verdicts
    assert set(verdicts) <= set(grader.classes)


@pytest.mark.parametrize("item", [ITEM, *({**ITEM, "person": value} for value in (None, "", "great", ["good"]))])
def test_item_without_a_persons_verdict_is_graded_and_not_compared(item: dict[str, Any]) -> None:
    for definition, result in ((label(), "good"), (score(), 1)):
        judged = {**definition, "human": "{{ item.person }}"}
        answer = chat(json.dumps({"steps": [], "result": result}))

        given = graded(judged, answer, item=item)

        assert given == graded(definition, answer, item=item)
        assert graders.parse_grader(definition).classes == []


def test_judge_with_a_person_is_not_part_of_a_formula() -> None:
    with pytest.raises(ValidationError, match="'human' stands alone"):
        graders.parse_grader(multi("a", a=label(human="{{ item.person }}")))
