"""OpenAI's notebooks about systems that evals drive: their requests, over data of our own. Run by `notebooks.py`.

The notebooks are in github.com/openai/openai-cookbook, `examples`:

    receipt_inspection             partners/eval_driven_system_design
    calibrating_llm_judges         evaluation
    autonomous_agent_retraining    partners/self_evolving_agents
"""

import asyncio
import base64
import json
from typing import Any

import openai
import pydantic
from checking import MODEL, check, facts_of, raised, same, until

client = openai.OpenAI()
PICTURE = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()


def ended(run: Any) -> Any:
    def look() -> Any:
        current = client.evals.runs.retrieve(eval_id=run.eval_id, run_id=run.id)
        return current if current.status in ("completed", "failed") else None

    done = until(look, f"the end of {run.id}")
    same((done.status, done.error), ("completed", None))
    return done


def items_of(run: Any) -> list[Any]:
    return list(client.evals.runs.output_items.list(eval_id=run.eval_id, run_id=run.id).data)


def config(*fields: str) -> Any:
    properties = {field: {"type": "string"} for field in fields}
    schema = {"type": "object", "properties": properties, "required": list(fields)}
    return {"type": "custom", "item_schema": schema, "include_sample_schema": False}


def jsonl(*items: Any) -> Any:
    content = [{"item": item} for item in items]
    return {"type": "jsonl", "source": {"type": "file_content", "content": content}}


class Location(pydantic.BaseModel):
    city: str | None
    zipcode: str | None


class LineItem(pydantic.BaseModel):
    description: str | None
    total: str | None


class ReceiptDetails(pydantic.BaseModel):
    merchant: str | None
    location: Location
    items: list[LineItem]
    total: str | None
    handwritten_notes: list[str]


class AuditDecision(pydantic.BaseModel):
    amount_over_limit: bool = pydantic.Field(description="Whether the total is above the limit.")
    reasoning: str = pydantic.Field(description="Why.")
    needs_audit: bool = pydantic.Field(description="Whether somebody has to look.")


class EvaluationRecord(pydantic.BaseModel):
    receipt_image_path: str
    correct_receipt_details: ReceiptDetails
    predicted_receipt_details: ReceiptDetails
    correct_audit_decision: AuditDecision
    predicted_audit_decision: AuditDecision


@check("receipt_inspection: receipts are read and audited, and nested fields of the records are graded")
def _() -> None:
    predicted, correct = "{{ item.predicted_receipt_details.%s }}", "{{ item.correct_receipt_details.%s }}"
    judged = f"What was missed?\n{correct % 'items'}\n{predicted % 'items'}"
    graders: list[Any] = [
        {
            "name": "Total Amount Accuracy",
            "type": "string_check",
            "operation": "eq",
            "input": predicted % "total",
            "reference": correct % "total",
        },
        {
            "name": "City Accuracy",
            "type": "string_check",
            "operation": "eq",
            "input": predicted % "location.city",
            "reference": correct % "location.city",
        },
        {
            "name": "Merchant Name Accuracy",
            "type": "text_similarity",
            "input": predicted % "merchant",
            "reference": correct % "merchant",
            "pass_threshold": 0.8,
            "evaluation_metric": "bleu",
        },
        {
            "name": "Missed Line Items",
            "type": "score_model",
            "model": MODEL,
            "input": [{"role": "system", "content": judged}],
            "range": [0, 1],
            "pass_threshold": 1,
        },
    ]

    async def parsed(asynchronous: Any, form: Any, *parts: Any) -> Any:
        response = await asynchronous.responses.parse(
            model=MODEL, input=[{"role": "user", "content": list(parts)}], text_format=form
        )
        return response.output_parsed

    async def record(asynchronous: Any, name: str) -> EvaluationRecord:
        picture = {"type": "input_image", "image_url": f"data:image/png;base64,{PICTURE}"}
        details = await parsed(asynchronous, ReceiptDetails, {"type": "input_text", "text": name}, picture)
        text = {"type": "input_text", "text": f"Receipt details:\n{details.model_dump_json(indent=2)}"}
        decision = await parsed(asynchronous, AuditDecision, {"type": "input_text", "text": "Audit it."}, text)
        return EvaluationRecord(
            receipt_image_path=name,
            correct_receipt_details=details.model_copy(update={"total": "12.50"}),
            predicted_receipt_details=details,
            correct_audit_decision=decision,
            predicted_audit_decision=decision,
        )

    async def evaluated() -> Any:
        async with openai.AsyncOpenAI() as asynchronous:
            records = await asyncio.gather(*(record(asynchronous, f"receipt-{n}.png") for n in range(3)))
            schema = EvaluationRecord.model_json_schema()
            made = await asynchronous.evals.create(
                name="Receipts",
                data_source_config={"type": "custom", "item_schema": schema, "include_sample_schema": False},
                testing_criteria=graders,
            )
            source = jsonl(*(record.model_dump() for record in records))
            return await asynchronous.evals.runs.create(name="receipts", eval_id=made.id, data_source=source)

    run = ended(asyncio.run(evaluated()))

    assert run.id in run.report_url, run.report_url
    same((run.result_counts.total, run.result_counts.failed), (3, 3))
    passed = {result.testing_criteria.partition("-")[0]: result.passed for result in run.per_testing_criteria_results}
    same(passed, {"Total Amount Accuracy": 0, "City Accuracy": 3, "Merchant Name Accuracy": 3, "Missed Line Items": 3})
    (asked,) = items_of(run)[0].results[3].sample["input"]
    assert asked["content"].count('[{"description"') == 2, asked


VERDICT: Any = {
    "format": {
        "type": "json_schema",
        "name": "verdict",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"verdict": {"type": "string", "enum": ["PASS", "FAIL"]}, "reason": {"type": "string"}},
            "required": ["verdict", "reason"],
            "additionalProperties": False,
        },
    }
}


@check("calibrating_llm_judges: verdicts are compared with the labels of people, and a judge becomes an eval")
def _() -> None:
    facts = "\nQUESTION: {question}\nREFERENCE: {reference_answer}\nCANDIDATE: {candidate_answer}"
    rules = {"permissive": "Further facts are fine.", "strict": "Fail what is told at great length."}
    prompts = {name: rule + facts for name, rule in rules.items()}
    fields = ("question", "reference_answer", "candidate_answer")
    rows = [
        dict(zip(fields, row, strict=True))
        for row in (
            ("How long is a session?", "30 minutes.", "30 minutes."),
            ("How many requests?", "100 a minute.", "100 a minute for each key."),
        )
    ]

    def judge(row: dict[str, str], prompt: str) -> str:
        response = client.responses.create(model=MODEL, input=prompt.format(**row), temperature=0, text=VERDICT)
        return str(json.loads(response.output_text)["verdict"])

    verdicts = {name: [judge(row, prompt) for row in rows] for name, prompt in prompts.items()}
    same(verdicts, {"permissive": ["PASS", "PASS"], "strict": ["FAIL", "FAIL"]})

    for name, prompt in prompts.items():
        grader_input = prompt
        for field in fields:
            grader_input = grader_input.replace("{" + field + "}", "{{item." + field + "}}")
        criterion: Any = {
            "type": "label_model",
            "name": "policy-conformance",
            "model": MODEL,
            "input": [{"role": "user", "content": grader_input}],
            "labels": ["PASS", "FAIL"],
            "passing_labels": ["PASS"],
        }
        made = client.evals.create(name="conformance", data_source_config=config(*fields), testing_criteria=[criterion])
        run = ended(client.evals.runs.create(eval_id=made.id, name=name, data_source=jsonl(*rows)))
        same([item.results[0].passed for item in items_of(run)], [verdict == "PASS" for verdict in verdicts[name]])


MENTIONS = """
def grade(sample: dict, item: dict) -> float:
    present = [name for name in ("Methanol", "Acetonitrile") if name in item["section"]]
    if not present:
        return 1.0
    return sum(name in item["summary"] for name in present) / len(present)"""
LENGTH = """
def grade(sample: dict, item: dict) -> float:
    return 1.0 - abs(len(item["summary"].split()) - 10) / 10"""


@check("autonomous_agent_retraining: each new prompt is graded by code and a judge, until all graders pass")
def _() -> None:
    def judge(text: str) -> dict[str, Any]:
        return {
            "name": "llm_as_judge",
            "type": "score_model",
            "model": MODEL,
            "input": [
                {"role": "system", "content": "Score the summary between 0 and 1."},
                {"role": "user", "content": f"Section:\n{{{{item.section}}}}\nSummary:\n{text}"},
            ],
            "range": [0, 1],
            "pass_threshold": 0.7,
        }

    def python(name: str, source: str, threshold: float) -> dict[str, Any]:
        fields = {"type": "python", "image_tag": "2025-05-08", "pass_threshold": threshold}
        return {**fields, "name": name, "source": source}

    graders = [python("chemical_name_grader", MENTIONS, 0.75), python("word_length_deviation_grader", LENGTH, 0.65)]

    def new_eval(text: str) -> Any:
        criteria: Any = [*graders, judge(text)]
        data_source_config = config("section", "summary")
        return client.evals.create(
            name="self_evolving_eval", data_source_config=data_source_config, testing_criteria=criteria
        )

    # The notebook's judge reads an answer that its eval expects none of: here that is refused, and named.
    refused = raised(openai.BadRequestError, new_eval, "{{sample.output_text}}")
    same(facts_of(refused)[2:], ("invalid_variable", "testing_criteria[2]"))
    made = new_eval("{{item.summary}}")

    section = "The substance is dissolved in Methanol and then in Acetonitrile."
    summaries = {
        "Summarize.": "It is dissolved.",
        "Summarize, with names.": "The substance is dissolved first in Methanol and later in Acetonitrile.",
    }
    history = []
    for prompt, summary in summaries.items():
        answered = client.responses.create(model=MODEL, instructions=prompt, input=section)
        assert answered.output_text, answered
        source = jsonl({"section": section, "summary": summary})
        run = ended(client.evals.runs.create(eval_id=made.id, name="self-evolving-eval", data_source=source))
        (item,) = items_of(run)
        history.append([(result.name.partition("-")[0], result.passed) for result in item.results])
        reasons = json.loads(item.results[2].sample["output"][0]["content"])["steps"]
        assert [step["conclusion"] for step in reasons], item
        same(item.results[0].sample, None)

    names = ("chemical_name_grader", "word_length_deviation_grader", "llm_as_judge")
    same(history, [list(zip(names, passed, strict=True)) for passed in ((False, False, True), (True, True, True))])
