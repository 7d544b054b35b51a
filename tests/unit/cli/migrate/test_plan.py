"""The plan of a migration: the requests for each object, made of it as OpenAI's SDK dumps it, and the reasons."""

import json
from pathlib import Path
from typing import Any

import pytest
from openai._models import construct_type
from openai.types import EvalRetrieveResponse

from cli.migrate.folder import FolderSource
from cli.migrate.outcomes import MigrationKind, ReportRow
from cli.migrate.plan import MigrationStep, ModelNames, plan

ID = "String check-a2486074-d803-4445-b431-ad2262e85d47"
CHECK = {"type": "string_check", "input": "{{sample.output_text}}", "reference": "{{item.label}}", "operation": "eq"}
JUDGE = {"type": "score_model", "name": "tone", "model": "gpt-4o", "input": [{"role": "user", "content": "Rate it."}]}
ITEM = {"type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]}
SHOWN = {
    "object": "eval",
    "id": "eval_67abd54d9b0081909a86353f6fb9317a",
    "data_source_config": {
        "type": "custom",
        "schema": {"type": "object", "properties": {"item": ITEM, "sample": {"type": "object"}}},
    },
    "testing_criteria": [{**CHECK, "name": "String check", "id": ID}],
    "name": "External Data Eval",
    "created_at": 1739314509,
    "metadata": {},
}
RUN = {"object": "eval.run", "id": "evalrun_1", "eval_id": SHOWN["id"], "status": "completed"}
DEEP = json.loads('[{"x":' * 400 + "1" + "}]" * 400)
PROMPT = {"openai_prompt_id": "pmpt_1", "versions": [{"version": "1", "messages": []}]}


def steps(folder: Path, *objects: Any, **names: str) -> list[MigrationStep]:
    (folder / "saved.jsonl").write_text("".join(json.dumps(value) + "\n" for value in objects))
    return list(plan(FolderSource([folder], folder), ModelNames(names, frozenset({"small"}))))


def only(folder: Path, *objects: Any, **names: str) -> MigrationStep:
    (step,) = (step for step in steps(folder, *objects, **names) if step.row.kind != "alias")
    return step


@pytest.mark.parametrize("by_alias", [False, True])
def test_eval_is_read_by_either_name_of_its_schema(tmp_path: Path, by_alias: bool) -> None:
    saved = construct_type(type_=EvalRetrieveResponse, value=SHOWN).model_dump(by_alias=by_alias)  # type: ignore[attr-defined]

    step = only(tmp_path, saved)

    assert step.row == ReportRow(MigrationKind.EVAL, SHOWN["id"])
    assert [(request.path, request.body) for request in step.requests] == [
        (
            "/evals/imports",
            {
                "imported_from": SHOWN["id"],
                "name": "External Data Eval",
                "data_source_config": {"type": "custom", "item_schema": ITEM, "include_sample_schema": True},
                "testing_criteria": [{**CHECK, "name": "String check", "id": ID}],
            },
        )
    ]


def test_models_of_judges_are_mapped_and_missing_models_are_named(tmp_path: Path) -> None:
    saved = SHOWN | {"testing_criteria": [JUDGE, {**JUDGE, "name": "style", "model": "o3"}]}

    step = only(tmp_path, saved, **{"gpt-4o": "small"})

    assert step.row.outcome == "different"
    assert step.row.reason == "gpt-4o becomes small; no model o3 is served here: name one with --map o3=MODEL"
    assert [criterion["model"] for criterion in step.requests[0].body["testing_criteria"]] == ["small", "o3"]


def test_criterion_of_an_unknown_type_is_left_out_with_a_reason(tmp_path: Path) -> None:
    magic = {"type": "magic", "name": "x"}

    step = only(tmp_path, SHOWN | {"testing_criteria": [magic, {**CHECK, "name": "same"}]})
    lost = only(tmp_path, SHOWN | {"testing_criteria": [magic]})

    assert step.row.outcome == "different"
    assert "the criterion x is left out: Input tag 'magic'" in step.row.reason
    assert [criterion["name"] for criterion in step.requests[0].body["testing_criteria"]] == ["same"]
    assert (lost.row.outcome, lost.requests) == ("lost", ())


def test_prompt_becomes_its_versions_in_order_and_a_label(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "You help {{name}}."}]
    config = {"model": "gpt-5", "reasoning": {"effort": "low"}, "text": {"format": {"type": "text"}}, "top_p": None}
    versions = [{"version": version, "messages": messages, "config": config} for version in ("10", "9")]

    step = only(
        tmp_path, PROMPT | {"name": "support", "production_version": "9", "versions": versions}, **{"gpt-5": "small"}
    )

    content = {
        "model": "small",
        "messages": messages,
        "text": {"format": {"type": "text"}},
        "parameters": {"reasoning": {"effort": "low"}},
    }
    assert (step.row.id, step.row.outcome, step.row.reason) == (None, "different", "gpt-5 becomes small")
    assert [(request.path, request.body) for request in step.requests] == [
        ("/prompts", {"id": "pmpt_1", "name": "support", "version": "9", **content}),
        ("/prompts/pmpt_1/versions", {"version": "9", **content}),
        ("/prompts/pmpt_1/versions", {"version": "10", **content}),
        ("/prompts/pmpt_1", {"default_version": "9", "labels": {"production": "9"}}),
    ]


def test_settings_and_tools_that_do_not_work_here_are_named(tmp_path: Path) -> None:
    config = {"max_output_tokens": 9, "store": True, "tools": [{"type": "web_search"}]}

    step = only(tmp_path, PROMPT | {"versions": [{"version": "1", "messages": [], "config": config}]})

    assert step.row.reason == "requests with its tool web_search are refused here; the setting store is left out"
    assert step.requests[0].body["parameters"] == {"max_output_tokens": 9}


@pytest.mark.parametrize(
    ("objects", "kind", "reason"),
    [
        ([RUN], "eval_run", "its eval eval_67abd54d9b0081909a86353f6fb9317a is not among the files"),
        ([{"object": "eval.run.output_item", "run_id": "evalrun_9"}], "eval_run", "not the run"),
        ([{"object": "batch", "id": "batch_1"}] * 2, "file", "2 of its objects are of the kind batch"),
        ([[1]], "file", "of the kind JSON list"),
        ([SHOWN | {"id": "../x"}], "file", "not an id"),
        ([SHOWN | {"testing_criteria": None}], "eval", "is not an eval"),
        ([SHOWN | {"testing_criteria": ["x"]}], "eval", "it is not an object"),
        ([SHOWN | {"testing_criteria": DEEP}], "eval", "it is nested too deeply"),
        ([{"object": "file", "id": "file-1"}], "file", "its content is not there"),
        ([PROMPT | {"versions": []}], "prompt", "not a list of objects"),
        ([PROMPT | {"versions": [{"version": "new"}]}], "prompt", "not a list of objects"),
        ([PROMPT | {"versions": [{"version": 1, "config": 5}]}], "prompt", "is not an object"),
        ([PROMPT | {"openai_prompt_id": "p"}], "prompt", "does not begin with pmpt_"),
        ([{"eval": SHOWN, "rows": 5}], "file", "lists of objects"),
        ([{"eval": SHOWN, "runs": [{}]}], "file", "no 'run'"),
        ([{"object": "fine_tuning.job", "id": "ftjob-1"}], "fine_tuning_job", "only succeeded jobs"),
    ],
)
def test_object_that_cannot_come_over_is_lost_with_a_reason(
    tmp_path: Path, objects: list[Any], kind: str, reason: str
) -> None:
    lost = [step.row for step in steps(tmp_path, *objects) if step.row.outcome == "lost"]

    assert [row.kind for row in lost] == [kind]
    assert reason in lost[0].reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"status": "failed"}, "its status is failed"),
        ({}, "it has no output items"),
    ],
)
def test_run_without_results_is_lost(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    run = steps(tmp_path, SHOWN, RUN | changes)[-1].row

    assert (run.kind, run.outcome) == ("eval_run", "lost")
    assert reason in run.reason


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", b"{", "it is not JSON"),
        ("a.jsonl", b'{"object": "list", "data": []}\n{\n', "line 2 is not JSON"),
        ("a.json", b"\xff\xfe\x00", "it is not JSON"),
        ("a.json", b"[" * 100_000, "it is not JSON"),
        ("notes.txt", b"x", "neither .json nor .jsonl"),
    ],
)
def test_broken_file_is_named_and_the_rest_is_read(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)

    rows = [step.row for step in steps(tmp_path, SHOWN)]

    assert [(row.kind, row.outcome) for row in rows] == [("eval", "same"), ("file", "lost")]
    assert rows[1].origin_id == str(tmp_path / name)
    assert reason in rows[1].reason
