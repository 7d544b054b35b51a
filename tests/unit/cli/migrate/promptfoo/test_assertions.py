"""Promptfoo's assertions as graders: each type of its schema, on outputs that pass and fail there."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cli.migrate.promptfoo import read
from cli.migrate.promptfoo.assertions import DEFAULT_JUDGE, REASONS, RULES, model_of
from cli.migrate.promptfoo.files import NoCounterpart
from jobs.evals.graders import parse_grader
from jobs.evals.graders.base import GradingCase, ModelAnswer, Ports
from jobs.evals.samples import sample_from_text

#: The types of Promptfoo's schema, without `not-`.
SCHEMA = re.findall(
    r"\S+",
    """
answer-relevance bleu classifier contains contains-all contains-any contains-html contains-json contains-sql
contains-xml context-faithfulness context-recall context-relevance conversation-relevance cost equals
factuality finish-reason g-eval gleu guardrails icontains icontains-all icontains-any is-html is-json
is-refusal is-sql is-valid-function-call is-valid-openai-function-call is-valid-openai-tools-call is-xml
javascript latency levenshtein llm-rubric pi meteor model-graded-closedqa model-graded-factuality moderation
perplexity perplexity-score python regex rouge-n ruby similar similar:cosine similar:dot similar:euclidean
starts-with tool-call-f1 skill-used trajectory:goal-success trajectory:tool-args-match trajectory:step-count
trajectory:tool-sequence trajectory:tool-used trace-error-spans trace-span-count trace-span-duration
search-rubric webhook word-count select-best human max-score
    """,
)

VARIABLES = {"city": "Lima", "country": {"name": "Peru"}, "context": "Lima is the capital.", "query": "Which?"}
PERSON = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
#: An assertion, outputs that pass it, outputs that fail it.
COMPARED: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"type": "equals", "value": "Lima"}, ["Lima"], ["lima", "Lima "]),
    ({"type": "equals", "value": "{{city}}"}, ["Lima"], ["{{city}}", ""]),
    ({"type": "equals", "value": 42}, ["42"], ["42.0"]),
    ({"type": "equals", "value": {"a": [1, None]}}, ['{"a": [1.0, null]}'], ['{"a": [1]}', "a", '{"a": [true, null]}']),
    ({"type": "not-equals", "value": "Lima"}, ["Quito"], ["Lima"]),
    ({"type": "not-equals", "value": {"a": 1}}, ["no JSON"], ['{"a": 1}']),
    ({"type": "contains", "value": "{{ country.name }}"}, ["In Peru."], ["in peru"]),
    ({"type": "not-contains", "value": "Peru"}, ["Chile"], ["Peru"]),
    ({"type": "icontains", "value": "PERU"}, ["peru"], ["Chile"]),
    ({"type": "not-icontains", "value": "PERU"}, ["Chile"], ["peru"]),
    ({"type": "contains-any", "value": ["a", "b"]}, ["b", "ab"], ["A"]),
    ({"type": "contains-any", "value": 'a, "b, c"'}, ["a", "b, c"], ["b", "c"]),
    ({"type": "not-contains-any", "value": ["a", "b"]}, ["c"], ["b"]),
    ({"type": "contains-all", "value": ["a", "{{city}}"]}, ["a Lima"], ["a", "Lime"]),
    ({"type": "not-contains-all", "value": ["a", "b"]}, ["b"], ["ab"]),
    ({"type": "icontains-any", "value": ["A", "B"]}, ["b"], ["c"]),
    ({"type": "icontains-all", "value": ["A", "B"]}, ["ba"], ["b"]),
    ({"type": "regex", "value": r"^\d{2}$"}, ["42"], ["42\n", "٤٢", "142"]),
    ({"type": "regex", "value": r"^a.b\s[\s\w]+$"}, ["a-b\ufeffe"], ["a\rb x", "a-b é"]),
    ({"type": "regex", "value": r"(?<year>\d+)[[\]]{x"}, ["1[{x"], ["1{x"]),
    ({"type": "regex", "value": "{{city}}|Quito"}, ["Quito", "Lima"], ["Bogotá"]),
    ({"type": "not-regex", "value": "^a"}, ["b"], ["ab"]),
    ({"type": "starts-with", "value": "The {{city}}"}, ["The Lima"], ["the Lima", "A The Lima"]),
    ({"type": "not-starts-with", "value": "The"}, ["A"], ["The"]),
    ({"type": "is-json"}, ["1", '{"a": 1}'], ["{", "NaN"]),
    ({"type": "is-json", "value": PERSON}, ['{"name": "Ana"}'], ['{"name": 1}', "{}", "Ana"]),
    ({"type": "is-json", "value": "required: [a]\ntype: object"}, ['{"a": 1}'], ["{}"]),
    ({"type": "not-is-json", "value": PERSON}, ["Ana", "{}"], ['{"name": "Ana"}']),
    ({"type": "finish-reason", "value": "STOP"}, ["any"], []),
    ({"type": "finish-reason", "value": "length"}, [], ["any"]),
    ({"type": "javascript", "value": "output.length < 3"}, ["ab"], ["abc", "a😀"]),
    ({"type": "javascript", "value": "output.includes('a') && !output.toLowerCase().includes(\"b\");"}, ["a"], ["aB"]),
    ({"type": "javascript", "value": "output === 'yes'"}, ["yes"], ["Yes"]),
    ({"type": "javascript", "value": "output.toLowerCase().startsWith('ab')"}, ["ABc"], ["cab"]),
    ({"type": "not-javascript", "value": "output !== 'yes'"}, ["yes"], ["no"]),
    ({"type": "python", "value": "len(output) > 2"}, ["abc"], ["ab"]),
    ({"type": "python", "value": "output == context['vars']['city']"}, ["Lima"], ["Quito"]),
    ({"type": "python", "value": "n = len(output)\nreturn n / 10", "threshold": 0.5}, ["abcde"], ["abc", ""]),
    ({"type": "python", "value": "{'pass': output == 'a', 'score': 0.5, 'reason': ''}"}, ["a"], ["b"]),
    ({"type": "python", "value": "{'pass': output == 'a', 'score': 0, 'reason': ''}"}, ["a"], ["b"]),
    ({"type": "python", "value": "context.get('config')['word'] in output", "config": {"word": "x"}}, ["x"], ["y"]),
    ({"type": "contains", "value": "a", "weight": 0}, ["a", "b"], []),
    ({"type": "contains", "value": "a", "metricOnly": True}, ["b"], []),
    ({"type": "assert-set", "threshold": 0.5, "assert": [
        {"type": "contains", "value": "a", "weight": 3}, {"type": "equals", "value": "b"}]}, ["a"], ["b", "c"]),
]  # fmt: skip
#: Assertions that lose their meaning here, by a word of the reason.
BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"type": "equals"}, "not a text"),
    ({"type": "equals", "value": "{{ city | upper }}"}, "more than a path"),
    ({"type": "equals", "value": "{% if city %}a{% endif %}"}, "a block"),
    ({"type": "equals", "value": {"a": "{{city}}"}}, "inside of an object"),
    ({"type": "equals", "value": "é", "normalizeUnicode": True}, "Unicode"),
    ({"type": "contains", "value": ""}, "no value"),
    ({"type": "contains", "value": "{{ env.CITY }}"}, "only Promptfoo fills"),
    ({"type": "contains", "value": "a", "transform": "output.trim()"}, "transform"),
    ({"type": "contains", "value": "file://../secret.txt"}, "leaves the folder"),
    ({"type": "contains", "value": "file://absent.txt"}, "cannot be read"),
    ({"type": "contains", "value": "file://value.js"}, "program"),
    ({"type": "contains-any", "value": []}, "no list"),
    ({"type": "contains-all", "value": [str(number) for number in range(30)]}, "more than 20"),
    ({"type": "regex", "value": "(?i)a"}, "Python reads otherwise"),
    ({"type": "regex", "value": r"(a)\1"}, "Python reads otherwise"),
    ({"type": "regex", "value": r"\p{L}"}, "Python reads otherwise"),
    ({"type": "regex", "value": "a++"}, "Python reads otherwise"),
    ({"type": "regex", "value": r"[\S]"}, "Python reads otherwise"),
    ({"type": "regex", "value": "["}, "Python reads otherwise"),
    ({"type": "regex", "value": "(a"}, "refused"),
    ({"type": "regex", "value": "a{9999}"}, "refused"),
    ({"type": "is-json", "value": "a: [b"}, "not YAML"),
    ({"type": "is-json", "value": "text"}, "not an object"),
    ({"type": "javascript", "value": "output.split(' ').length > 3"}, "no JavaScript"),
    ({"type": "javascript", "value": "file://check.js"}, "program"),
    ({"type": "javascript", "value": "output.toLowerCase().includes('A')"}, "no JavaScript"),
    ({"type": "python", "value": "output =="}, "not Python"),
    ({"type": "python", "value": "{{city}} == output"}, "template"),
    ({"type": "python", "value": "context['test'] and True"}, "more of the context"),
    ({"type": "python", "value": "f(context)"}, "more of the context"),
    ({"type": "python", "value": "True", "threshold": 2}, "threshold"),
    ({"type": "python", "value": "file://check.py:other"}, "no function other"),
    ({"type": "python", "value": "file://imports.py"}, "imports 'helper'"),
    ({"type": "not-python", "value": "True"}, "negation"),
    ({"type": "not-factuality", "value": "a"}, "negation"),
    ({"type": "not-llm-rubric", "value": "a", "threshold": 0.5}, "a threshold and a negation"),
    ({"type": "llm-rubric", "value": "a", "rubricPrompt": "{{output}}"}, "rubricPrompt"),
    ({"type": "llm-rubric", "value": "a", "provider": "file://judge.py"}, "program"),
    ({"type": "llm-rubric", "value": "a", "threshold": 7}, "refused"),
    ({"type": "context-recall", "value": "a", "contextTransform": "output"}, "the variable 'context'"),
    ({"type": "contains", "value": "a", "weight": -1}, "weight"),
    ({"type": "assert-set", "threshold": 0.5, "assert": [{"type": "latency", "threshold": 5}]}, "latency: an item"),
    ({"type": "assert-set", "threshold": 0.5, "assert": []}, "no sum above 0"),
    ({"type": "promptfoo:redteam:pii"}, "red-team"),
    ({"type": "made-up"}, "no known type"),
    ({"value": "a"}, "no type"),
]


def run_python(source: str, item: Any, sample: Any, seconds: float) -> float:
    names: dict[str, Any] = {}
    exec(source, names)
    return float(names["grade"](sample, item))


def bring(folder: Path, *tests: Any, prompts: Any = "Where is {{city}}?", **config: Any) -> tuple[list[Any], list[Any]]:
    """Read a config of some tests; return its evals and the remarks."""
    path = folder / "promptfooconfig.json"
    path.write_text(json.dumps({"prompts": prompts, "providers": ["openai:gpt-4o-mini"], "tests": tests, **config}))
    [reading] = read([path])
    return [value for value in reading.values if "eval" in value], reading.remarks


def passes(bundle: Any, output: str, answer: Any = None) -> bool:
    """Grade an output by all criteria of an eval, with the item of its first row."""
    [item, *_], criteria = bundle["rows"], bundle["eval"]["testing_criteria"]
    grades = [
        parse_grader(made).grade(
            GradingCase(
                item, sample_from_text(output), Ports(run_python=run_python, embedding_model="e"), answers(answer)
            )
        )
        for made in criteria
    ]
    assert not [grade.error for grade in grades if grade.error]
    return all(grade.passed for grade in grades)


def answers(answer: Any) -> dict[str, ModelAnswer]:
    message = {"content": json.dumps({"steps": [], "result": answer})}
    body = answer if isinstance(answer, dict) else {"choices": [{"message": message, "finish_reason": "stop"}]}
    return {"": ModelAnswer(200, body), "g1": ModelAnswer(200, body)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "check.py").write_text("def get_assert(output, ctx):\n    return ctx['vars']['city'] in output\n")
    (tmp_path / "imports.py").write_text("import helper\ndef get_assert(output, context):\n    return True\n")
    (tmp_path / "helper.py").write_text("")
    (tmp_path / "schema.json").write_text(json.dumps(PERSON))
    (tmp_path.parent / "secret.txt").write_text("secret")
    return tmp_path


def test_every_type_of_the_schema_has_a_rule_or_a_reason() -> None:
    assert set(SCHEMA) <= RULES.keys() | REASONS.keys()
    assert not RULES.keys() & REASONS.keys()


@pytest.mark.parametrize(("assertion", "passing", "failing"), COMPARED, ids=lambda value: str(value)[:50])
def test_assertion_passes_and_fails_the_outputs_of_promptfoo(
    folder: Path, assertion: Any, passing: list[str], failing: list[str]
) -> None:
    [bundle], remarks = bring(folder, {"vars": VARIABLES, "assert": [assertion]})
    assert not [remark for remark in remarks if remark[2]]
    assert [passes(bundle, output) for output in passing] == [True] * len(passing)
    assert [passes(bundle, output) for output in failing] == [False] * len(failing)


@pytest.mark.parametrize("kind", sorted(REASONS))
def test_type_without_a_grader_is_lost_with_its_reason(folder: Path, kind: str) -> None:
    evals, remarks = bring(folder, {"assert": [{"type": kind, "value": "a"}, {"type": "equals", "value": "a"}]})
    assert (kind, REASONS[kind], True) in remarks
    assert [made["type"] for made in evals[0]["eval"]["testing_criteria"]] == ["string_check"]


@pytest.mark.parametrize(("assertion", "reason"), BROKEN, ids=lambda value: str(value)[:50])
def test_broken_assertion_is_lost_with_its_reason(folder: Path, assertion: Any, reason: str) -> None:
    evals, remarks = bring(folder, {"vars": VARIABLES, "assert": [assertion]})
    assert evals == []
    assert [text for _, text, is_lost in remarks if is_lost and reason in text]


def test_file_of_a_value_is_read_from_the_folder(folder: Path) -> None:
    (code, schema), _ = bring(
        folder,
        {"vars": VARIABLES, "assert": [{"type": "python", "value": "file://check.py"}]},
        {"assert": [{"type": "is-json", "value": "file://schema.json"}]},
    )
    assert passes(code, "In Lima")
    assert not passes(code, "In Quito")
    assert passes(schema, '{"name": "Ana"}')


@pytest.mark.parametrize(
    ("assertion", "grader", "passing", "failing"),
    [
        ({"type": "llm-rubric", "value": "names {{city}}"}, "label_model", "pass", "fail"),
        ({"type": "not-llm-rubric", "value": "names {{city}}"}, "multi", "fail", "pass"),
        ({"type": "llm-rubric", "value": "a", "threshold": 0.8}, "score_model", 0.8, 0.7),
        ({"type": "model-graded-closedqa", "value": "is short"}, "label_model", "Y", "N"),
        ({"type": "factuality", "value": "In Peru"}, "label_model", "B", "D"),
        ({"type": "model-graded-factuality", "value": "In Peru"}, "label_model", "E", "D"),
        ({"type": "context-recall", "value": "a", "threshold": 0.5}, "context_recall", [True], [False]),
        ({"type": "context-faithfulness"}, "faithfulness", [True, False], [True, False, False]),
    ],
)
def test_model_graded_assertion_becomes_a_judge(
    folder: Path, assertion: Any, grader: str, passing: Any, failing: Any
) -> None:
    [bundle], remarks = bring(folder, {"vars": VARIABLES, "assert": [assertion | {"provider": "openai:chat:gpt-4.1"}]})
    [made] = bundle["eval"]["testing_criteria"]
    assert made["type"] == grader
    assert made.get("graders", {"g1": made})["g1"]["model"] == "gpt-4.1"
    assert [reason for _, reason, is_lost in remarks if "verdicts may differ" in reason and not is_lost]
    passed, failed = (
        [{"statement": "", "verdict": verdict} for verdict in answer] if isinstance(answer, list) else answer
        for answer in (passing, failing)
    )
    assert passes(bundle, "Lima", passed)
    assert not passes(bundle, "Lima", failed)


def test_judge_sees_the_rubric_the_answer_and_the_question(folder: Path) -> None:
    [bundle], _ = bring(
        folder,
        {"vars": VARIABLES, "assert": [{"type": "factuality", "value": "In {{country.name}}", "provider": "openai:o"}]},
    )
    case = GradingCase(bundle["rows"][0], sample_from_text("South"))
    [request] = parse_grader(bundle["eval"]["testing_criteria"][0]).requests(case)
    assert {"Where is Lima?", "In Peru", "South"} <= set(request.body["messages"][-1]["content"].split("\n"))


def test_judge_without_a_name_is_named_by_a_placeholder(folder: Path) -> None:
    [bundle], remarks = bring(folder, {"assert": [{"type": "llm-rubric", "value": "a"}]})
    assert bundle["eval"]["testing_criteria"][0]["model"] == DEFAULT_JUDGE
    assert [reason for _, reason, _ in remarks if f"--map {DEFAULT_JUDGE}=MODEL" in reason]


def test_judge_of_the_default_test_is_taken(folder: Path) -> None:
    default = {"options": {"provider": {"text": {"id": "anthropic:messages:claude-a", "config": {"apiKey": "sk-x"}}}}}
    [bundle], _ = bring(folder, {"assert": [{"type": "llm-rubric", "value": "a"}]}, defaultTest=default)
    assert bundle["eval"]["testing_criteria"][0]["model"] == "claude-a"
    assert "sk-x" not in json.dumps(bundle)


def test_categories_of_factuality_are_the_passing_labels(folder: Path) -> None:
    test = {"assert": [{"type": "factuality", "value": "a"}], "options": {"factuality": {"subset": 0, "disagree": 1}}}
    [bundle], _ = bring(folder, test)
    assert bundle["eval"]["testing_criteria"][0]["passing_labels"] == ["B", "C", "D", "E"]
    test["options"]["factuality"]["subset"] = 0.5  # type: ignore[index]
    evals, remarks = bring(folder, test)
    assert evals == []
    assert [reason for _, reason, _ in remarks if "scores between 0 and 1" in reason]


@pytest.mark.parametrize(
    ("assertion", "threshold", "formula"),
    [
        ({"type": "similar", "value": "a"}, 0.75, None),
        ({"type": "similar:cosine", "value": ["a", "b"], "threshold": 0.5}, 0.5, "max(g1, g2)"),
        ({"type": "not-similar", "value": "a", "threshold": 0.25}, 0.75, "(1 - g1)"),
    ],
)
def test_similarity_is_the_cosine_from_the_threshold_on(
    folder: Path, assertion: Any, threshold: float, formula: str | None
) -> None:
    [bundle], _ = bring(folder, {"assert": [assertion]})
    [made] = bundle["eval"]["testing_criteria"]
    assert (made["pass_threshold"], made.get("calculate_output")) == (threshold, formula)
    assert (made if formula is None else made["graders"]["g1"])["evaluation_metric"] == "cosine"


def test_threshold_of_a_test_is_that_of_the_weighted_mean(folder: Path) -> None:
    test = {
        "threshold": 0.5,
        "assert": [
            {"type": "contains", "value": "a", "weight": 2},
            {"type": "assert-set", "threshold": 1, "assert": [{"type": "contains", "value": part} for part in "bc"]},
            {"type": "contains", "value": "d", "weight": 0},
            {"type": "python", "value": "0.5 if 'e' in output else 0"},
        ],
    }
    [bundle], _ = bring(folder, test)
    assert bundle["eval"]["testing_criteria"][0]["calculate_output"] == "((g1 * 2 + ((g2 + g3) / 2) + g4) / 4)"
    assert [passes(bundle, output) for output in ("a", "bcd", "bce", "b", "acd")] == [True, False, False, False, True]


def test_set_without_a_threshold_is_each_of_its_assertions(folder: Path) -> None:
    parts = [{"type": "contains", "value": "a"}, {"type": "contains", "value": "b", "metric": "Has b"}]
    [bundle], _ = bring(
        folder, {"assert": [{"type": "assert-set", "assert": parts}, {"type": "contains", "value": "c"}]}
    )
    assert [made["name"] for made in bundle["eval"]["testing_criteria"]] == ["contains", "Has b", "contains 2"]
    assert passes(bundle, "abc")
    assert not passes(bundle, "ac")


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai:gpt-4o-mini", "gpt-4o-mini"),
        ("openai:chat:ft:gpt-4o-mini:org::id", "ft:gpt-4o-mini:org::id"),
        ("openai:responses:gpt-5", "gpt-5"),
        ({"id": "azure:chat:my-deployment"}, "my-deployment"),
        ("ollama:llama3:8b", "llama3:8b"),
        *((name, None) for name in ("echo", "python:a.py", "https://a.example/v1", "file://a.js", 7, None)),
        *((name, None) for name in ("openai:chat", "openai:{{env.MODEL}}", "openai:embedding:e", "openai:assistant:a")),
    ],
)  # fmt: skip
def test_provider_names_its_model(provider: Any, model: str | None) -> None:
    if model is None:
        with pytest.raises(NoCounterpart):
            model_of(provider)
    else:
        assert model_of(provider) == model
