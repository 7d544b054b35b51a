"""Promptfoo's configs and results: prompts, tests and files of a folder, and the runs of each version's results."""

import json
from pathlib import Path
from typing import Any

import pytest

from api.evals.imports import ImportEval
from cli.migrate.promptfoo import PromptfooReading, files, is_promptfoo, read
from cli.migrate.promptfoo.config import MAX_TESTS, assertion_of_text
from cli.migrate.promptfoo.files import ConfigFolder, NoCounterpart, load_yaml
from workers.evals.imported_run import _decode

ASK = "What is the capital of {{country}}?"
CONTAINS = {"type": "icontains", "value": "{{capital}}"}
ROWS = [{"country": "Peru", "capital": "Lima"}, {"country": "Chile", "capital": "Santiago"}]


def config(**fields: Any) -> dict[str, Any]:
    tests = [{"vars": row} for row in ROWS]
    base = {"description": "Capitals", "prompts": [ASK], "providers": ["openai:gpt-4o-mini"], "tests": tests}
    return base | {"defaultTest": {"assert": [CONTAINS]}} | fields


def reading_of(folder: Path, value: Any, name: str = "promptfooconfig.yaml") -> PromptfooReading:
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
    [reading] = read([folder / name])
    return reading


def rows_of(reading: PromptfooReading) -> list[Any]:
    return [row for value in reading.values for row in value.get("rows", ())]


def prompts_of(reading: PromptfooReading) -> list[Any]:
    return [value for value in reading.values if "versions" in value]


def losses(reading: PromptfooReading) -> list[str]:
    return [f"{what}: {reason}" for what, reason, is_lost in reading.remarks if is_lost]


# ── configs ──


def test_config_becomes_a_prompt_and_an_eval_with_rows(tmp_path: Path) -> None:
    reading = reading_of(tmp_path, config())
    [prompt, bundle] = reading.values
    [version] = prompt["versions"]
    assert (version["model"], version["messages"]) == ("gpt-4o-mini", [{"role": "user", "content": ASK}])
    assert version["variables"] == [{"name": "country", "type": "string"}]
    assert bundle["rows"] == ROWS
    [made] = bundle["eval"]["testing_criteria"]
    assert (made["operation"], made["reference"]) == ("ilike", "{{ item.capital }}")
    assert (reading.remarks, reading.files) == ([], {tmp_path.resolve() / "promptfooconfig.yaml"})


def test_eval_of_a_config_is_taken_by_the_import(tmp_path: Path) -> None:
    eval_object = reading_of(tmp_path, config()).values[1]["eval"]
    body = {"imported_from": eval_object["id"], "name": eval_object["name"], "metadata": eval_object["metadata"]}
    schema = eval_object["data_source_config"]["schema"]["properties"]["item"]
    taken = ImportEval.model_validate(
        {
            **body,
            "testing_criteria": eval_object["testing_criteria"],
            "data_source_config": {"type": "custom", "item_schema": schema, "include_sample_schema": True},
        }
    )
    assert taken.name == "Capitals"


def test_tests_with_other_values_alone_share_an_eval(tmp_path: Path) -> None:
    tests = [
        {
            "vars": {"country": "Peru"},
            "assert": [{"type": "equals", "value": "Lima"}, {"type": "contains", "value": "a"}],
        },
        {"vars": {"country": "Chad"}, "assert": [{"type": "equals", "value": "B"}, {"type": "contains", "value": "a"}]},
        {"vars": {"country": "Mali"}, "assert": [{"type": "regex", "value": "^B"}]},
    ]
    reading = reading_of(tmp_path, config(tests=tests, defaultTest={}))
    first, second = (value for value in reading.values if "eval" in value)
    references = [made["reference"] for made in first["eval"]["testing_criteria"]]
    assert references == ["{{ item.expected }}", "a"]
    assert first["rows"] == [{"country": "Peru", "expected": "Lima"}, {"country": "Chad", "expected": "B"}]
    assert (first["eval"]["name"], second["eval"]["name"]) == ("Capitals: equals, contains", "Capitals: regex")


def test_field_of_a_value_leaves_the_variables_alone(tmp_path: Path) -> None:
    tests = [{"vars": {"expected": name}, "assert": [{"type": "equals", "value": name * 2}]} for name in "ab"]
    assert rows_of(reading_of(tmp_path, config(tests=tests, defaultTest={}))) == [
        {"country": "", "expected": "a", "expected_": "aa"},
        {"country": "", "expected": "b", "expected_": "bb"},
    ]


def test_list_of_texts_becomes_a_test_for_each_combination(tmp_path: Path) -> None:
    variables = {"country": ["Peru", "Chile"], "capital": ["a", "b"], "numbers": [1, 2]}
    tests = [{"vars": variables}, {"vars": {"capital": ["c", "d"]}, "options": {"disableVarExpansion": True}}]
    rows = rows_of(reading_of(tmp_path, config(tests=tests)))
    assert [(row["country"], row["capital"]) for row in rows[:4]] == [
        ("Peru", "a"), ("Peru", "b"), ("Chile", "a"), ("Chile", "b"),
    ]  # fmt: skip
    assert (rows[0]["numbers"], rows[4]["capital"], len(rows)) == ([1, 2], ["c", "d"], 5)


def test_combinations_beyond_the_limit_are_lost(tmp_path: Path) -> None:
    names = [str(number) for number in range(300)]
    reading = reading_of(
        tmp_path, config(tests=[{"vars": {"country": names, "capital": names}}]), "promptfooconfig.json"
    )
    assert len(rows_of(reading)) == MAX_TESTS
    assert [loss for loss in losses(reading) if f"more than {MAX_TESTS} tests" in loss]


def test_default_test_gives_variables_and_assertions(tmp_path: Path) -> None:
    default = {"vars": {"country": "Peru"}, "assert": [CONTAINS]}
    tests = [
        {"vars": {"capital": "Lima"}, "assert": [{"type": "contains", "value": "i"}]},
        {"vars": {"capital": "Lima"}, "options": {"disableDefaultAsserts": True}},
    ]
    reading = reading_of(tmp_path, config(defaultTest=default, tests=tests))
    [bundle] = [value for value in reading.values if "eval" in value]
    assert [made["name"] for made in bundle["eval"]["testing_criteria"]] == ["icontains", "contains"]
    assert bundle["rows"] == [{"country": "Peru", "capital": "Lima"}]
    assert losses(reading) == ["test 2: it has none of 1 to 50 assertions that come over"]


def test_variable_that_names_another_is_filled(tmp_path: Path) -> None:
    tests = [
        {"vars": {"country": "{{ land }}s\n", "land": "Peru", "capital": "a"}},
        {"vars": {"country": "{{ x | upper }}"}},
    ]
    reading = reading_of(tmp_path, config(tests=tests))
    assert [row["country"] for row in rows_of(reading)] == ["Perus"]
    assert "its variable 'country' is a template" in losses(reading)[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tests.csv", "country,capital,__description\nPeru,Lima,first\nChile,Santiago,\n"),
        ("tests.json", json.dumps([{"vars": row} for row in ROWS])),
        ("tests.jsonl", "\n".join(json.dumps({"vars": row}) for row in ROWS)),
        (
            "tests.yaml",
            "- vars: &peru {country: Peru, capital: Lima}\n- vars: {<<: *peru, country: Chile, capital: Santiago}\n",
        ),
    ],
)
def test_tests_of_a_file_are_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / name).write_text(text)
    for reference in (f"file://more/{name}", [f"more/*{Path(name).suffix}"], "file://more"):
        reading = reading_of(tmp_path, config(tests=reference))
        assert rows_of(reading) == ROWS, losses(reading)
        assert (tmp_path / "more" / name).resolve() in reading.files


def test_row_of_csv_has_its_own_assertions(tmp_path: Path) -> None:
    (tmp_path / "tests.csv").write_text(
        "\ufeffcountry,__expected1,__expected2,__metric,__threshold\n"
        'Peru,Lima,"contains-any: a, b",Capital,\nChile,,,,\n'
    )
    reading = reading_of(tmp_path, config(tests="tests.csv", defaultTest={}))
    [bundle] = [value for value in reading.values if "eval" in value]
    assert [made["name"] for made in bundle["eval"]["testing_criteria"]] == ["Capital", "Capital 2"]
    assert bundle["eval"]["testing_criteria"][1]["calculate_output"] == "max(g1, g2)"


@pytest.mark.parametrize(
    ("text", "assertion"),
    [
        ("Lima", {"type": "equals", "value": "Lima"}),
        ("note: a", {"type": "equals", "value": "note: a"}),
        ("not-contains:Lima", {"type": "not-contains", "value": "Lima"}),
        ("icontains-all: a, b", {"type": "icontains-all", "value": ["a", "b"]}),
        ("similar(0.5):a", {"type": "similar", "value": "a", "threshold": 0.5}),
        ("similar:a", {"type": "similar", "value": "a", "threshold": 0.8}),
        ("is-json", {"type": "is-json", "value": None}),
        ("grade:is kind", {"type": "llm-rubric", "value": "is kind"}),
        ("fn: output == 1", {"type": "javascript", "value": "output == 1"}),
        ("python: len(output)", {"type": "python", "value": "len(output)"}),
        ("file://a.py:check", {"type": "python", "value": "file://a.py:check"}),
        ("file://a.js", {"type": "javascript", "value": "file://a.js"}),
    ],
)
def test_cell_of_csv_names_an_assertion(text: str, assertion: dict[str, Any]) -> None:
    assert assertion_of_text(text) == assertion


def test_reference_takes_the_place_of_a_template_of_assertions(tmp_path: Path) -> None:
    (tmp_path / "shared.yaml").write_text("short: {type: javascript, value: output.length < 9}")
    templates = {"named": {"type": "contains", "value": "a"}}
    references = [{"$ref": "#/assertionTemplates/named", "value": "b"}, {"$ref": "shared.yaml#/short"}]
    reading = reading_of(tmp_path, config(assertionTemplates=templates, defaultTest={"assert": references}))
    criteria = reading.values[1]["eval"]["testing_criteria"]
    assert (criteria[0]["reference"], criteria[1]["type"]) == ("b", "python")


@pytest.mark.parametrize(
    ("prompts", "messages"),
    [
        ("Hi {{ name }}", [{"role": "user", "content": "Hi {{name}}"}]),
        ([{"label": "x", "raw": "Hi"}], [{"role": "user", "content": "Hi"}]),
        ("file://chat.json", [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "{{name}}"}]),
        ("chat.yaml", [{"role": "user", "content": "{{name}}"}]),
        ('[{"role": "user", "content": "{{name}}"}]', [{"role": "user", "content": "{{name}}"}]),
        ("- role: user\n  content: '{{name}}'\n", [{"role": "user", "content": "{{name}}"}]),
        ("file://image.json", [{"role": "user", "content": [
            {"type": "input_text", "text": "{{name}}"}, {"type": "input_image", "image_url": "https://a.example/b.png"}]}]),
    ],
)  # fmt: skip
def test_prompt_becomes_messages(tmp_path: Path, prompts: Any, messages: Any) -> None:
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "{{name}}"}]
    (tmp_path / "chat.json").write_text(json.dumps(chat))
    (tmp_path / "chat.yaml").write_text("- {role: user, content: '{{name}}'}")
    image = {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}}
    parts = [{"type": "text", "text": "{{name}}"}, image]
    (tmp_path / "image.json").write_text(json.dumps([{"role": "user", "content": parts}]))
    [prompt] = prompts_of(reading_of(tmp_path, config(prompts=prompts)))
    assert prompt["versions"][0]["messages"] == messages


def test_file_of_several_prompts_is_split(tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("First {{a}}\n---\nSecond\n")
    prompts = prompts_of(reading_of(tmp_path, config(prompts="file://*.txt")))
    assert [prompt["versions"][0]["messages"][0]["content"] for prompt in prompts] == ["First {{a}}", "Second"]
    assert len({prompt["id"] for prompt in prompts}) == 2


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("{{ name | upper }}", "more than a path"),
        ("{% for a in b %}{% endfor %}", "block"),
        ("{{ user.name }}", "names alone"),
        ("{{ _conversation }}", "only Promptfoo fills"),
        ("file://prompt.py:make", "program"),
        ("langfuse://a:1", "another service"),
        ("file://absent.txt", "cannot be read"),
        ("file://../secret.txt", "leaves the folder"),
        ("file:///etc/hostname", "leaves the folder"),
        ("file://link.txt", "leaves the folder"),
        ('[{"role": "tool", "content": "a"}]', "not a text of a system"),
        ('[{"role": "user", "content": [{"type": "audio"}]}]', "neither a text nor an image"),
        ('[{"role": "user"', "not JSON"),
    ],
)
def test_prompt_without_a_counterpart_is_lost(tmp_path: Path, prompt: str, reason: str) -> None:
    (tmp_path.parent / "secret.txt").write_text("secret")
    (tmp_path / "link.txt").symlink_to(tmp_path.parent / "secret.txt")
    reading = reading_of(tmp_path, config(prompts=[prompt, ASK]))
    assert len(prompts_of(reading)) == 1
    assert [loss for loss in losses(reading) if reason in loss]


def test_parameters_of_a_model_come_over_and_secrets_do_not(tmp_path: Path) -> None:
    settings = {"temperature": 0, "max_tokens": 9, "reasoning_effort": "low", "apiKey": "sk-1"}
    reading = reading_of(tmp_path, config(providers=[{"id": "openai:o", "config": settings}]))
    [prompt] = prompts_of(reading)
    assert prompt["versions"][0]["parameters"] == {
        "temperature": 0,
        "max_output_tokens": 9,
        "reasoning": {"effort": "low"},
    }
    assert ("provider openai:o", "its settings do not come over: apiKey", False) in reading.remarks
    assert "sk-1" not in repr(reading)


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        ({"options": {"transform": "output.trim()"}}, "change the request or the output"),
        ({"options": {"prefix": "a"}}, "change the request or the output"),
        ({"assertScoringFunction": "file://score.js"}, "computes its score"),
        ({"providerOutput": "a"}, "given"),
        ({"vars": {"country": "file://photo.png"}}, "not a text"),
        ({"vars": {"country": "file://country.py"}}, "program"),
        ({"vars": 7}, "not an object"),
        ("huggingface://datasets/a/b", "lie elsewhere"),
        ({"path": "file://tests.py:make"}, "by a program"),
        ("file://tests.js", "program"),
        ("absent-*.yaml", "no file is there"),
    ],
)
def test_test_without_a_counterpart_is_lost(tmp_path: Path, test: Any, reason: str) -> None:
    reading = reading_of(tmp_path, config(tests=[test, {"vars": ROWS[0]}]))
    assert rows_of(reading) == ROWS[:1]
    assert [loss for loss in losses(reading) if reason in loss]


def test_file_of_a_variable_is_its_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" Peru \n")
    (tmp_path / "b.yaml").write_text("name: Peru")
    tests = [{"vars": {"country": f"file://{name}"}} for name in ("a.txt", "b.yaml", "*.txt")]
    rows = rows_of(reading_of(tmp_path, config(tests=tests)))
    assert [row["country"] for row in rows] == ["Peru", '{"name":"Peru"}', "Peru"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[yes, on, 2024-01-01, 1:30, 012, 0x1f, 1e3, ~]", ["yes", "on", "2024-01-01", "1:30", 12, 31, 1000.0, None]),
        ("true", True),
        ("a: &b {c: 1}\nd: {<<: *b}", {"a": {"c": 1}, "d": {"c": 1}}),
    ],
)
def test_yaml_has_the_values_of_version_1_2(text: str, value: Any) -> None:
    assert load_yaml(text) == value


@pytest.mark.parametrize(
    "text", ["a: [", "!!python/object/apply:os.system [id]", "[" * 3000, "providers: [a]\nprompts: &a [*a]"]
)
def test_hostile_yaml_is_refused(tmp_path: Path, text: str) -> None:
    reading = reading_of(tmp_path, text)
    assert (reading.values, len(losses(reading))) == ([], 1)


def test_aliases_that_multiply_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10))]
    reading = reading_of(tmp_path, "\n".join(["providers: [a]\nprompts: [b]", *lines]))
    assert losses(reading) == ["promptfooconfig.yaml: it has too many parts, or refers to itself"]


@pytest.mark.parametrize(
    "value",
    [{"$ref": "#/a"}, {"a": {"$ref": "#/a"}}, {"a": {"$ref": "absent.yaml"}}, {"a": {"$ref": "#/b/0"}, "b": {}}],
)
def test_reference_that_leads_nowhere_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(NoCounterpart):
        ConfigFolder(tmp_path).follow(value, value)


def test_files_beyond_the_limits_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("12345")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    folder = ConfigFolder(tmp_path)
    for name, limit, reason in (
        ("MAX_BYTES", 4, "too large"),
        ("MAX_ALL_BYTES", 6, "too large"),
        ("MAX_MATCHES", 1, "more than 1"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(files, name, limit)
            with pytest.raises(NoCounterpart, match=reason):
                _ = folder.text("a.txt"), folder.text("a.txt"), folder.matches("*.txt")
    with pytest.raises(NoCounterpart, match="UTF-8"):
        folder.text("b.txt")


# ── results ──


def result(row: int, *, output: str, passed: bool, **fields: Any) -> dict[str, Any]:
    component = {"pass": passed, "score": float(passed), "reason": "because", "assertion": CONTAINS}
    return {
        "testIdx": row,
        "promptIdx": 0,
        "vars": ROWS[row],
        "testCase": {"vars": ROWS[row], "assert": [CONTAINS], "options": {}, "metadata": {}},
        "prompt": {"raw": f"What is the capital of {ROWS[row]['country']}?", "label": ASK},
        "provider": {"id": "openai:gpt-4o-mini", "label": ""},
        "response": {
            "output": output,
            "tokenUsage": {"total": 9, "prompt": 6, "completion": 3},
            "finishReason": "stop",
        },
        "success": passed,
        "failureReason": int(not passed),
        "gradingResult": {"pass": passed, "score": float(passed), "reason": "", "componentResults": [component]},
    } | fields


RESULTS = [result(0, output="Lima.", passed=True), result(1, output="Lima.", passed=False)]
HEAD = {"raw": ASK, "label": ASK, "provider": "openai:gpt-4o-mini"}


def table() -> dict[str, Any]:
    body = [
        {
            "vars": [row["country"], row["capital"]],
            "test": saved["testCase"],
            "outputs": [
                {
                    "text": saved["response"]["output"],
                    "prompt": saved["prompt"]["raw"],
                    "pass": saved["success"],
                    "gradingResult": saved["gradingResult"],
                    "tokenUsage": saved["response"]["tokenUsage"],
                }
            ],
        }
        for row, saved in zip(ROWS, RESULTS, strict=True)
    ]
    return {"head": {"prompts": [HEAD], "vars": ["country", "capital"]}, "body": body}


TIME = "2026-01-21T22:56:55.886Z"
VERSIONS: dict[str, Any] = {
    "exported": {
        "evalId": "eval-a-2026",
        "results": {"version": 3, "timestamp": TIME, "prompts": [HEAD], "results": RESULTS},
        "config": config(),
        "metadata": {"promptfooVersion": "0.120.16", "evaluationCreatedAt": TIME},
    },
    "summary of version 3": {
        "version": 3,
        "timestamp": TIME,
        "prompts": [HEAD],
        "results": RESULTS,
        "config": config(),
    },
    "table of version 4": {
        "id": "eval-a-2026",
        "version": 4,
        "createdAt": 1769036215886,
        "table": table(),
        "config": config(),
    },
    "table of version 2": {
        "results": {"version": 2, "timestamp": TIME, "table": table(), "results": []},
        "config": config(),
    },
}


@pytest.mark.parametrize("version", VERSIONS)
def test_results_become_a_run_with_graded_items(tmp_path: Path, version: str) -> None:
    reading = reading_of(tmp_path, VERSIONS[version], "results.json")
    [bundle] = reading.values
    assert reading.remarks == []
    [of_config] = [value for value in reading_of(tmp_path, config()).values if "eval" in value]
    assert bundle["eval"] == of_config["eval"] | {"created_at": 1769036215}
    assert bundle["rows"] == ROWS
    [entry] = bundle["runs"]
    run, items = entry["run"], entry["output_items"]
    assert (run["status"], run["model"], run["eval_id"]) == ("completed", "gpt-4o-mini", bundle["eval"]["id"])
    template = [{"role": "user", "content": "What is the capital of {{ item.country }}?"}]
    assert run["data_source"]["input_messages"] == {"type": "template", "template": template}
    assert [(item["datasource_item_id"], item["datasource_item"], item["status"]) for item in items] == [
        (0, ROWS[0], "pass"),
        (1, ROWS[1], "fail"),
    ]
    [graded] = items[1]["results"]
    assert (graded["name"], graded["passed"], graded["score"]) == ("icontains", False, 0.0)
    assert items[0]["sample"]["output"] == [{"role": "assistant", "content": "Lima."}]
    assert items[0]["sample"]["usage"]["total_tokens"] == 9
    for item in items:
        assert _decode(json.dumps(item).encode()).status == item["status"]


def test_results_on_lines_are_read(tmp_path: Path) -> None:
    text = "\n".join(map(json.dumps, RESULTS))
    [bundle] = reading_of(tmp_path, text, "results.jsonl").values
    assert [item["status"] for item in bundle["runs"][0]["output_items"]] == ["pass", "fail"]


def test_reading_twice_gives_the_same_ids(tmp_path: Path) -> None:
    first, second = (reading_of(tmp_path, VERSIONS["exported"], "results.json") for _ in range(2))
    assert first == second


def test_each_model_has_a_run_of_its_own(tmp_path: Path) -> None:
    other = [{**row, "provider": {"id": "openai:gpt-5"}} for row in RESULTS]
    value = {"timestamp": TIME, "prompts": [HEAD, HEAD], "results": [*RESULTS, *other]}
    [bundle] = reading_of(tmp_path, value, "results.json").values
    assert [entry["run"]["model"] for entry in bundle["runs"]] == ["gpt-4o-mini", "gpt-5"]
    assert bundle["rows"] == ROWS


def test_results_of_a_set_are_read_behind_its_own(tmp_path: Path) -> None:
    parts = [{"type": "contains", "value": "a"}, {"type": "latency", "threshold": 5}]
    assertions = [{"type": "assert-set", "assert": parts}, {"type": "equals", "value": "b"}, {"type": "select-best"}]
    inner = [{"pass": True, "score": 1, "assertion": parts[0]}, {"pass": False, "score": 0, "assertion": parts[1]}]
    components = [
        {"pass": False, "score": 0.5, "componentResults": inner},
        *inner,
        {"pass": True, "score": 1, "assertion": assertions[1]},
        {"pass": False, "score": 0, "assertion": assertions[2]},
    ]
    row = result(0, output="b", passed=False, testCase={"assert": assertions})
    row["gradingResult"]["componentResults"] = components
    reading = reading_of(tmp_path, {"timestamp": TIME, "prompts": [HEAD], "results": [row]}, "results.json")
    [item] = reading.values[0]["runs"][0]["output_items"]
    assert [(graded["name"], graded["passed"]) for graded in item["results"]] == [("contains", True), ("equals", True)]
    assert ("results", "1 that failed by assertions which do not come over alone pass here", False) in reading.remarks


def test_threshold_of_a_test_is_graded_by_the_whole_test(tmp_path: Path) -> None:
    row = result(0, output="b", passed=True, testCase={"assert": [CONTAINS], "threshold": 0.5})
    row["gradingResult"] |= {"score": 0.75, "componentResults": []}
    [bundle] = reading_of(tmp_path, {"timestamp": TIME, "prompts": [HEAD], "results": [row]}, "results.json").values
    [graded] = bundle["runs"][0]["output_items"][0]["results"]
    assert (graded["name"], graded["score"], graded["passed"]) == ("assertions", 0.75, True)


@pytest.mark.parametrize(
    "fields",
    [
        {"gradingResult": None, "response": None, "error": "rate limit", "failureReason": 2},
        {"gradingResult": {"pass": True, "score": 1, "componentResults": [{"pass": True, "assertion": {"type": "x"}}]}},
        {"gradingResult": {"pass": True, "score": 1, "componentResults": [{"pass": "yes", "score": 1}]}},
        {"gradingResult": {"pass": True, "score": 1, "componentResults": []}},
    ],
)
def test_result_without_its_grades_is_an_error(tmp_path: Path, fields: Any) -> None:
    value = {"timestamp": TIME, "prompts": [HEAD], "results": [result(0, output="Lima", passed=True, **fields)]}
    [bundle] = reading_of(tmp_path, value, "results.json").values
    [item] = bundle["runs"][0]["output_items"]
    assert (item["status"], item["results"]) == ("error", [])
    assert (item["sample"].get("error") or {}).get("message") == fields.get("error")


@pytest.mark.parametrize(
    "value",
    [
        {"timestamp": TIME, "results": [{"prompt": 1, "provider": 2, "testCase": None}]},
        {"results": {"table": {"body": [1]}}},
        {"results": {"table": {"body": [{"outputs": [{}]}], "head": {"prompts": ["a"]}}}},
        {"timestamp": TIME, "results": [RESULTS[0], 7]},
        {"timestamp": TIME, "results": [result(0, output="", passed=True, testCase={"assert": 7})]},
        config(tests=7),
        config(prompts=7, providers=7, tests=[7, None]),
        config(defaultTest="file://absent.yaml"),
        config(defaultTest=7),
        config(tests=[{"assert": [{"type": "contains", "value": "a", "metric": {"a": 1}}, 7, {"type": "assert-set"}]}]),
    ],
)  # fmt: skip
def test_broken_file_is_lost_with_a_reason(tmp_path: Path, value: Any) -> None:
    reading = reading_of(tmp_path, value, "promptfooconfig.json")
    assert losses(reading)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (config(), True),
        ({"targets": ["openai:gpt-5"], "tests": []}, True),
        *((saved, True) for saved in VERSIONS.values()),
        (RESULTS[0], True),
        ({"object": "eval", "testing_criteria": []}, False),
        ({"object": "list", "data": []}, False),
        ({"results": [{"name": "a"}], "timestamp": 1}, False),
        ({"providers": [], "services": {}}, False),
        ([], False),
        ("providers", False),
    ],
)  # fmt: skip
def test_value_of_promptfoo_differs_from_other_values(value: Any, expected: bool) -> None:
    assert is_promptfoo(value) is expected


def test_files_of_others_are_passed_over(tmp_path: Path) -> None:
    for name, text in (
        ("a.json", "{}"),
        ("b.yaml", "a: ["),
        ("c.txt", "x"),
        ("d.jsonl", '{"object": "eval"}\n'),
        ("e.json", "[1]"),
    ):
        (tmp_path / name).write_text(text)
    assert list(read(sorted(tmp_path.iterdir()))) == []
