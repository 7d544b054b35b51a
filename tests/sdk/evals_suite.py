"""Evals: the whole surface of an SDK, on runs that the fake model answers with `echo` and a hash. Run by `suite.py`."""

import json
from hashlib import sha256
from typing import Any

import openai
from checking import MODEL, check, client, facts_of, fresh, raised, raw, same, until

evals = client.evals
SCHEMA = {"type": "object", "properties": {"question": {"type": "string"}, "answer": {"type": "string"}}}
SAME = {
    "type": "string_check",
    "name": "same",
    "input": "{{ sample.output_text }}",
    "operation": "eq",
    "reference": "{{ item.answer }}",
}
#: The fake model is no judge: what it answers is no score.
JUDGE = {
    "type": "score_model",
    "name": "good",
    "model": MODEL,
    "input": [{"role": "user", "content": "Is '{{ sample.output_text }}' good?"}],
    "range": [0, 1],
    "pass_threshold": 0.5,
}
CUSTOM = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
TEMPLATE = {"type": "template", "template": [{"role": "user", "content": "{{ item.question }}"}]}
LIVE = ("queued", "in_progress")


def echo(question: str) -> str:
    return f"echo {sha256(question.encode()).hexdigest()[:16]}"


def rows(*questions: str) -> list[dict[str, Any]]:
    """Return items; what the model answers to a question that ends with `?` is right."""
    return [{"item": {"question": text, "answer": echo(text) if text.endswith("?") else "no"}} for text in questions]


def new_eval(*criteria: dict[str, Any], config: Any = CUSTOM, **fields: Any) -> Any:
    return evals.create(data_source_config=config, testing_criteria=list(criteria) or [SAME], **fields)  # type: ignore[arg-type]


def new_run(eval_id: str, *questions: str, kind: str = "completions", **source: Any) -> Any:
    asked = {"model": MODEL, "input_messages": TEMPLATE}
    data_source = {"type": kind, "source": {"type": "file_content", "content": rows(*questions)}, **asked, **source}
    return evals.runs.create(eval_id, name="r", data_source=data_source, metadata={"k": "v"})  # type: ignore[arg-type]


def run_ended(run: Any) -> Any:
    def look() -> Any:
        current = evals.runs.retrieve(run.id, eval_id=run.eval_id)
        return None if current.status in LIVE else current

    return until(look, f"the end of {run.id}")


def counts_of(run: Any) -> tuple[int, ...]:
    counts = run.result_counts
    return counts.total, counts.passed, counts.failed, counts.errored


@check("an eval is created, retrieved, renamed, listed and deleted")
def _() -> None:
    team = fresh("team")
    made, other = (new_eval(name=name, metadata={"team": team}) for name in ("first", "second"))

    same((made.object, made.name, made.metadata), ("eval", "first", {"team": team}))
    same((made.data_source_config.type, made.testing_criteria[0].name), ("custom", "same"))
    same(made.data_source_config.schema_["properties"]["item"], SCHEMA)
    same(evals.retrieve(made.id).to_dict(), made.to_dict())
    renamed = evals.update(made.id, name="third", metadata={"team": "b"})
    same((renamed.name, renamed.metadata), ("third", {"team": "b"}))
    same([row.id for row in evals.list(limit=1)], [made.id, other.id])
    same([row.id for row in evals.list(limit=1, order="desc", order_by="updated_at")], [made.id, other.id])
    deleted = evals.delete(made.id)
    same((deleted.object, deleted.deleted, deleted.eval_id), ("eval.deleted", True, made.id))
    raised(openai.NotFoundError, evals.retrieve, made.id)


@check("a run of an eval is graded item by item")
def _() -> None:
    made = new_eval(SAME, name="e")
    run = new_run(made.id, "a?", "b?", "c")
    same((run.object, run.eval_id, run.name, run.model), ("eval.run", made.id, "r", MODEL))
    same((run.metadata, run.error, run.per_model_usage), ({"k": "v"}, None, None))

    done = run_ended(run)

    same((done.status, counts_of(done)), ("completed", (3, 2, 1, 0)))
    assert made.id in done.report_url, done.report_url
    (criterion,) = done.per_testing_criteria_results
    same((criterion.testing_criteria, criterion.passed, criterion.failed), ("same", 2, 1))
    (usage,) = done.per_model_usage
    same((usage.run_model_name, usage.invocation_count), (MODEL, 3))
    same((done.data_source.type, done.data_source.model), ("completions", MODEL))
    page = evals.runs.output_items.list(run.id, eval_id=made.id, limit=1)
    listed = list(page)
    same([(row.datasource_item_id, row.status) for row in listed], [(0, "pass"), (1, "pass"), (2, "fail")])
    failed = list(evals.runs.output_items.list(run.id, eval_id=made.id, status="fail", order="desc"))
    same([row.id for row in failed], [listed[2].id])
    item = evals.runs.output_items.retrieve(listed[0].id, eval_id=made.id, run_id=run.id)
    same((item.object, item.run_id, item.results[0].name), ("eval.run.output_item", run.id, "same"))
    same((item.results[0].passed, item.results[0].score), (True, 1.0))
    same((item.sample.input[0].content, item.sample.output[0].content), ("a?", echo("a?")))
    same((item.sample.model, item.sample.finish_reason, item.sample.error), (MODEL, "stop", None))


@check("runs of an eval are listed by status, cancelled and deleted")
def _() -> None:
    made = new_eval(name="e")
    done, slow = run_ended(new_run(made.id, "a?")), new_run(made.id, "!slow")

    same([evals.runs.cancel(slow.id, eval_id=made.id).status for _ in range(2)], ["canceled"] * 2)
    same([row.id for row in evals.runs.list(made.id, limit=1)], [done.id, slow.id])
    same([row.id for row in evals.runs.list(made.id, status="completed")], [done.id])
    error = raised(openai.ConflictError, evals.runs.cancel, done.id, eval_id=made.id)
    same(facts_of(error), (409, "invalid_request_error", "invalid_state", None))
    deleted = evals.runs.delete(done.id, eval_id=made.id)
    same((deleted.object, deleted.deleted, deleted.run_id), ("eval.run.deleted", True, done.id))
    raised(openai.NotFoundError, evals.runs.retrieve, done.id, eval_id=made.id)


@check("a run reads a file, and asks for responses")
def _() -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows("a?", "b"))
    file = client.files.create(file=("items.jsonl", lines.encode()), purpose="evals")
    made = new_eval(name="e")

    done = run_ended(new_run(made.id, kind="responses", source={"type": "file_id", "id": file.id}))

    same((done.status, done.data_source.type, counts_of(done)[0]), ("completed", "responses", 2))


@check("stored chats are evaluated as they were answered, and asked again")
def _() -> None:
    team = fresh("team")
    for text in ("a?", "b?"):
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": text}], store=True, metadata={"team": team}
        )
    made = new_eval({**SAME, "reference": echo("a?")}, config={"type": "logs", "metadata": {"team": team}}, name="e")
    source = {"type": "stored_completions", "limit": 10}
    reference = {"type": "item_reference", "item_reference": "item.input"}

    stored: Any = {"type": "completions", "source": source}
    as_answered = run_ended(evals.runs.create(made.id, data_source=stored))
    asked_again = run_ended(
        evals.runs.create(made.id, data_source={**stored, "model": MODEL, "input_messages": reference})
    )

    same((counts_of(as_answered), as_answered.per_model_usage), ((2, 1, 1, 0), []))
    same((counts_of(asked_again), asked_again.model), ((2, 1, 1, 0), MODEL))


@check("an item whose judge answers nonsense has errored, and a retry asks again")
def _() -> None:
    made = new_eval(SAME, JUDGE, name="e")
    run = run_ended(new_run(made.id, "a?"))

    raw("evals.runs.retry")
    job = client.post(f"/jobs/{run.id}/retry", cast_to=object, body={})
    again = run_ended(evals.runs.retrieve(job["id"], eval_id=made.id))  # type: ignore[index]

    same((run.status, counts_of(run)), ("completed", (1, 0, 0, 1)))
    same((again.status, counts_of(again)), ("completed", (1, 0, 0, 1)))
    same({usage.invocation_count for usage in again.per_model_usage}, {1})
    (item,) = evals.runs.output_items.list(again.id, eval_id=made.id)
    same((item.status, item.results[1].passed, item.results[1].score), ("error", False, None))


@check("an eval and a run that cannot be are BadRequestErrors")
def _() -> None:
    error = raised(openai.BadRequestError, new_eval, {**SAME, "type": "nothing"})
    same(facts_of(error), (400, "invalid_request_error", "invalid_value", "testing_criteria[0].type"))
    made = new_eval(name="e")
    error = raised(openai.BadRequestError, new_run, made.id, source={"type": "file_id", "id": "file-x"})
    same(facts_of(error), (400, "invalid_request_error", "file_not_found", "data_source.source.id"))
    raised(openai.NotFoundError, evals.runs.retrieve, "evalrun_none", eval_id=made.id)
