"""OpenAI's notebooks about evals: their requests with this server's URL, key and models, over data of our own.

A check is a notebook of `examples/evaluation/use-cases` in github.com/openai/openai-cookbook, or a guide; it looks at
what the cells behind a request read. The model answers in the form that is asked for (`schema_answers.py`).

    python notebooks.py '{"url": …}'         the facts are those of tests.sdk.deployment
"""

import asyncio
import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import openai
import pydantic
from checking import FACTS, MODEL, check, facts_of, raised, run_checks, same, until

os.environ |= {"OPENAI_API_KEY": FACTS["key"], "OPENAI_BASE_URL": f"{FACTS['url']}/v1"}
client = openai.OpenAI()

NOTIFICATIONS = [
    "- Your parcel is at the door.\n- Ann: are you coming at seven?",
    "- Storm from five o'clock.\n- The dentist expects you at three.",
    "- The battery is low.\n- Your meeting begins in ten minutes.",
]
#: What makes the judge choose the last label.
WORDY = "Sum up the notifications at great length."
SYMBOLS = {
    "type": "object",
    "properties": {
        "symbols": {
            "type": "array",
            "description": "The symbols of the code.",
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "description": "Its name."},
                    "symbol_type": {"type": "string", "description": "Its kind."},
                },
                "required": ["name", "symbol_type"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["symbols"],
    "additionalProperties": False,
}
FOUND = [{"name": "echo", "symbol_type": "echo"}]
SAMPLING = {"seed": 42, "temperature": 0.7, "max_completions_tokens": 10000, "top_p": 0.9}


class PushNotifications(pydantic.BaseModel):
    notifications: str


def file_of_the_sdk() -> str:
    """Return the text of a file of the SDK, which notebooks have explained and read symbols from."""
    return (Path(openai.__file__).parent / "resources" / "evals" / "evals.py").read_text()


def ended(run: Any) -> Any:
    """Wait for a run as the notebooks do."""

    def look() -> Any:
        current = client.evals.runs.retrieve(run.id, eval_id=run.eval_id)
        return current if current.status in ("completed", "failed") else None

    return until(look, f"the end of {run.id}")


def graded(run: Any, total: int) -> Any:
    """Wait for a run, and check that each of its `total` items has its grades."""
    done = ended(run)
    counts = done.result_counts
    same((done.status, counts.total, counts.errored), ("completed", total, 0))
    assert run.eval_id in done.report_url, done.report_url
    assert run.id in done.report_url, done.report_url
    return done


def items_of(run: Any) -> list[Any]:
    return list(client.evals.runs.output_items.list(run_id=run.id, eval_id=run.eval_id))


def judgement(item: Any) -> dict[str, Any]:
    """Return what an item's first result has of its judge, in the fields that OpenAI's has."""
    sample: Any = item.results[0].sample
    assert {"role": "assistant"}.items() <= sample["output"][0].items(), sample
    assert "result" in json.loads(sample["output"][0]["content"]), sample
    same((sample["finish_reason"], sample["model"]), ("stop", MODEL))
    usage = sample["usage"]
    same(usage["total_tokens"], usage["prompt_tokens"] + usage["completion_tokens"])
    assert usage["completion_tokens"] > 0, usage
    return dict(sample)


def judged_text(item: Any) -> str:
    """Return the last message to the judge of an item."""
    last = judgement(item)["input"][-1]
    same(last["role"], "user")
    return str(last["content"])


def message(role: str, text: str) -> dict[str, Any]:
    """Return a message of a template, whose content is one part."""
    return {"type": "message", "role": role, "content": {"type": "input_text", "text": text}}


def template(text: str) -> dict[str, Any]:
    return {"type": "template", "template": [message("system", "You help."), message("user", text)]}


def contents(*items: Any) -> dict[str, Any]:
    return {"type": "file_content", "content": [{"item": item} for item in items]}


def custom(*fields: str, **schema: Any) -> dict[str, Any]:
    properties = {field: {"type": "string"} for field in fields}
    item_schema = {"type": "object", "properties": properties, **schema}
    return {"type": "custom", "item_schema": item_schema, "include_sample_schema": True}


def labels(*names: str, passing: str, text: str) -> dict[str, Any]:
    return {
        "name": "Summary Grader",
        "type": "label_model",
        "model": MODEL,
        "input": [{"role": "developer", "content": "Label the summary."}, {"role": "user", "content": text}],
        "passing_labels": [passing],
        "labels": list(names),
    }


def scores(text: str, **fields: Any) -> dict[str, Any]:
    return {
        "type": "score_model",
        "name": "General Evaluator",
        "model": MODEL,
        "input": [{"role": "system", "content": "Score what was found."}, {"role": "user", "content": text}],
        **fields,
    }


def new_eval(config: Any, *criteria: Any) -> Any:
    return client.evals.create(name="Notebook", data_source_config=config, testing_criteria=list(criteria))


def new_run(eval_id: str, name: str, **source: Any) -> Any:
    return client.evals.runs.create(eval_id=eval_id, name=name, data_source=source)  # type: ignore[arg-type]


def uploaded(name: str, rows: list[Any]) -> str:
    """Upload rows from a file on disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with path.open("rb") as handle:
            return client.files.create(file=handle, purpose="evals").id


def summarize(notifications: str) -> Any:
    return openai.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "developer", "content": "Sum up the notifications."},
            {"role": "user", "content": notifications},
        ],
    )


@check("bulk-experimentation: each prompt is tried with each model, and every run is graded")
def _() -> None:
    schema: Any = PushNotifications.model_json_schema()
    given = "<push_notifications>{{item.notifications}}</push_notifications>"
    names = ("concise-and-snappy", "drops-important-information", "verbose", "unclear", "obscures-meaning", "other")
    grader: Any = labels(*names, passing=names[0], text=given + "\n<summary>{{sample.output_text}}</summary>")
    made = openai.evals.create(
        name="Bulk",
        metadata={"description": "Many prompts and models."},
        data_source_config={"type": "custom", "item_schema": schema, "include_sample_schema": True},
        testing_criteria=[grader],
    )
    runs = {}
    for prompt_name in ("basic", "with_examples", "with_negative_examples"):
        for model in (MODEL, *FACTS["bases"]):
            source: Any = {
                "type": "completions",
                "input_messages": {
                    "type": "template",
                    "template": [
                        {"role": "developer", "content": f"Sum up: {prompt_name}."},
                        {"role": "user", "content": given},
                    ],
                },
                "model": model,
                "source": contents(*(PushNotifications(notifications=text).model_dump() for text in NOTIFICATIONS)),
            }
            name = f"bulk_{prompt_name}_{model}"
            runs[name] = openai.evals.runs.create(eval_id=made.id, name=name, data_source=source)

    for run in runs.values():
        done = graded(run, len(NOTIFICATIONS))
        same((done.result_counts.passed, done.model), (len(NOTIFICATIONS), run.model))
        for item, text in zip(items_of(run), NOTIFICATIONS, strict=True):
            assert f"<push_notifications>{text}</push_notifications>" in judged_text(item), item
            assert f"<summary>{item.sample.output[0].content}</summary>" in judged_text(item), item
    same(sorted(run.name for run in openai.evals.runs.list(made.id)), sorted(runs))


@check("completion-monitoring: stored completions are graded by metadata, and asked again")
def _() -> None:
    asyncio.run(monitor())


async def monitor() -> None:
    usecase = {"usecase": "push_notifications_summarizer"}
    prompts = (("Sum up the notifications in a sentence.", "v1"), (WORDY, "v2"))
    async with openai.AsyncOpenAI() as eager:
        await asyncio.gather(
            *(
                eager.chat.completions.create(
                    model=MODEL,
                    messages=[{"role": "developer", "content": prompt}, {"role": "user", "content": text}],
                    store=True,
                    metadata={"prompt_version": version, **usecase},
                )
                for text in NOTIFICATIONS
                for prompt, version in prompts
            )
        )
        completions = await eager.chat.completions.list()
        assert completions.data[0].metadata is not None, completions.data[0]
        assert usecase.items() <= completions.data[0].metadata.items(), completions.data[0]
        text = "Push notifications: {{item.input}}\nSummary: {{sample.output_text}}"
        grader: Any = labels("correct", "incorrect", passing="correct", text=text)
        made = await eager.evals.create(
            name="Monitoring",
            metadata={"description": "What was answered."},
            data_source_config={"type": "stored_completions", "metadata": usecase},
            testing_criteria=[grader],
        )

        async def run(name: str, version: str, **asked: Any) -> Any:
            stored = {"type": "stored_completions", "metadata": {"prompt_version": version}}
            source: Any = {"type": "completions", "source": stored, **asked}
            return await eager.evals.runs.create(eval_id=made.id, name=name, data_source=source)

        reference = {"type": "item_reference", "item_reference": "item.input"}
        kept = [await run(f"{version}-run", version) for version in ("v1", "v2")]
        fresh = await asyncio.gather(
            *(run(f"post-fix-{version}", version, input_messages=reference, model=MODEL) for version in ("v1", "v2"))
        )

    count = len(NOTIFICATIONS)
    for first, second in (kept, fresh):
        same((graded(first, count).result_counts.passed, graded(second, count).result_counts.failed), (count, count))
    same([ended(run).per_model_usage[0].run_model_name for run in fresh], [MODEL, MODEL])
    assert WORDY in judged_text(items_of(kept[1])[0]), items_of(kept[1])[0]


@check("regression: samples that are whole chat completions are graded, and responses written as completions")
def _() -> None:
    schema: Any = PushNotifications.model_json_schema()
    config = {"type": "custom", "item_schema": schema, "include_sample_schema": True}
    text = "Push notifications: {{item.notifications}}\nSummary: {{sample.output_text}}"
    made = new_eval(config, labels("correct", "incorrect", passing="correct", text=text))

    def transform(response: Any) -> dict[str, Any]:
        said = {"role": "assistant", "content": response.output_text}
        return {"model": response.model, "choices": [{"index": 0, "message": said, "finish_reason": "stop"}]}

    def respond(notifications: str) -> Any:
        asked = [{"role": "developer", "content": "Sum up."}, {"role": "user", "content": notifications}]
        return openai.responses.create(model=MODEL, input=asked)  # type: ignore[arg-type]

    given = {
        "baseline-run": [summarize(text).model_dump() for text in NOTIFICATIONS],
        "responses-run": [transform(respond(text)) for text in NOTIFICATIONS],
    }
    for name, samples in given.items():
        rows = [
            {"item": PushNotifications(notifications=text).model_dump(), "sample": sample}
            for text, sample in zip(NOTIFICATIONS, samples, strict=True)
        ]
        run = new_run(made.id, name, type="jsonl", source={"type": "file_content", "content": rows})
        same(graded(run, len(rows)).result_counts.passed, len(rows))
        for item, sample in zip(items_of(run), samples, strict=True):
            said = sample["choices"][0]["message"]["content"]
            same((item.sample.output[0].content, item.sample.model), (said, MODEL))
            assert judged_text(item).endswith(f"Summary: {said}"), item


@check("responses-evaluation: stored responses are graded as they were answered, and asked again")
def _() -> None:
    source: dict[str, Any] = {"type": "responses", "limit": 5}
    code = file_of_the_sdk()
    question = [{"type": "input_text", "text": "What is it for?"}, {"type": "input_text", "text": code}]
    asked = client.responses.create(input=[{"role": "user", "content": question}], model=MODEL)  # type: ignore[arg-type,list-item]
    open_brace = "**User input**\n\n{{item.input}}\n\n**Response to evaluate**\n\n{{sample.output_text}\n"
    made = new_eval({"type": "logs"}, scores(open_brace, pass_threshold=0.5))

    answered = client.evals.runs.create(eval_id=made.id, data_source={"type": "responses", "source": source})  # type: ignore[typeddict-item]
    again = new_run(
        made.id,
        "again",
        type="responses",
        source=source,
        input_messages={"type": "item_reference", "item_reference": "item.input"},
        model=MODEL,
    )

    for run in (answered, again):
        total = ended(run).result_counts.total
        assert 1 <= total <= source["limit"], total
        same(graded(run, total).result_counts.passed, total)
        said = {judged_text(item): item.sample.output[0].content for item in items_of(run)}
        (explained,) = [text for text in said if json.dumps(code, ensure_ascii=False) in text]
        assert explained.endswith("{{sample.output_text}\n"), explained[-100:]
        same(said[explained], asked.output_text)


@check("structured-outputs-evaluation: JSON of a schema is graded, of completions and of responses")
def _() -> None:
    judged = "<Code File>\n{{item.input}}\n</Code File>\n\n<Extracted>\n{{sample.output_json.symbols}}\n</Extracted>\n"
    made = new_eval(custom("input"), scores(judged, range=[1, 7], pass_threshold=5.5))
    schema = {"name": "python_symbols", "schema": SYMBOLS, "strict": True}
    common = {
        "source": contents({"input": file_of_the_sdk()}),
        "input_messages": template("Extract the symbols from the code file {{item.input}}"),
        "model": MODEL,
    }
    chat_form = {"response_format": {"type": "json_schema", "json_schema": schema}}
    response_form = {"text": {"format": {"type": "json_schema", **schema}}}
    runs = [
        new_run(made.id, "chat", type="completions", sampling_params={**SAMPLING, **chat_form}, **common),
        new_run(made.id, "response", type="responses", sampling_params={**SAMPLING, **response_form}, **common),
    ]

    for run in runs:
        same(graded(run, 1).result_counts.failed, 1)
        (item,) = items_of(run)
        same(json.loads(item.sample.output[0].content), {"symbols": FOUND})
        same([type(part.content) for part in item.sample.input], [str, str])
        assert f"<Extracted>\n{json.dumps(FOUND)}\n</Extracted>" in judged_text(item), judged_text(item)[-300:]
        with warnings.catch_warnings(action="ignore"):  # OpenAI's samples have nulls, too, where the SDK has none
            page = client.evals.runs.output_items.list(run_id=run.id, eval_id=made.id)
            dumped = json.loads(page.model_dump_json(indent=4))
        same(dumped["data"][0]["id"], item.id)


@check("structured-outputs-evaluation: sentiments are graded as a whole object")
def _() -> None:
    schema = {
        "type": "object",
        "properties": {
            "sentiment": {"type": "string", "description": "positive, negative or neutral"},
            "confidence": {"type": "number", "description": "0 to 1"},
            "emotions": {"type": "array", "description": "joy, anger, …", "items": {"type": "string"}},
        },
        "required": ["sentiment", "confidence", "emotions"],
        "additionalProperties": False,
    }
    items = [
        {"text": "It works, thank you!", "channel": "mail", "language": "en"},
        {"text": "Es ist schon wieder kaputt.", "channel": "app_review", "language": "de"},
        {"text": "很好用。", "channel": "wechat", "language": "zh"},
    ]
    config = custom("text", "channel", "language", required=["text"])
    judge = scores("Text: {{item.text}}\nOutput:\n{{sample.output_json}}\n", range=[1, 5], pass_threshold=3.5)
    made = new_eval(config, judge)
    form = {"format": {"type": "json_schema", "name": "sentiment_output", "schema": schema, "strict": True}}
    run = new_run(
        made.id,
        "sentiment",
        type="responses",
        source=contents(*items),
        input_messages=template("{{item.text}}"),
        model=MODEL,
        sampling_params={**SAMPLING, "max_completions_tokens": 100, "text": form},
    )

    graded(run, len(items))
    for item, given in zip(items_of(run), items, strict=True):
        same(item.datasource_item, given)
        assert f"Text: {given['text']}\nOutput:\n{item.sample.output[0].content}" in judged_text(item), item


@check("tools-evaluation: the arguments of a called function are graded, of completions and of responses")
def _() -> None:
    judged = "<Extracted>\n{{sample.output_tools[0].function.arguments.symbols}}\n</Extracted>\n"
    made = new_eval(custom("input"), scores(judged, range=[1, 7], pass_threshold=5.0))
    symbol_tool = {"name": "extract_symbols", "description": "Extract the symbols.", "parameters": SYMBOLS}
    common = {
        "source": contents({"input": file_of_the_sdk()}),
        "input_messages": template("Extract the symbols from the code file {{item.input}}"),
        "model": MODEL,
    }
    chat_tools = [{"type": "function", "function": symbol_tool}]
    response_tools = [{"type": "function", **symbol_tool}]
    runs = [
        new_run(made.id, "chat", type="completions", sampling_params={**SAMPLING, "tools": chat_tools}, **common),
        new_run(made.id, "response", type="responses", sampling_params={**SAMPLING, "tools": response_tools}, **common),
    ]

    for run in runs:
        same(graded(run, 1).result_counts.failed, 1)
        (item,) = items_of(run)
        arguments = item.sample.output[0].tool_calls[0]["function"]["arguments"]
        same(json.loads(arguments), {"symbols": FOUND})
        assert f"<Extracted>\n{json.dumps(FOUND)}\n</Extracted>" in judged_text(item), judged_text(item)


WEB_SEARCH = {"type": "web_search_preview"}
MCP = {
    "type": "mcp",
    "server_label": "gitmcp",
    "server_url": "https://gitmcp.io/openai/tiktoken",
    "allowed_tools": ["search_tiktoken_documentation", "fetch_tiktoken_documentation"],
    "require_approval": "never",
}
CALLED = """
def grade(sample: dict, item: dict) -> float:
    output = sample.get('output_tools', [])
    return 1.0 if len(output) > 0 else 0.0
"""


def refused_tool(tool: dict[str, Any], *criteria: dict[str, Any]) -> None:
    """Check that an eval is created, and a run with a tool that nobody here calls is refused by its name."""
    judged = "<Query>\n{{item.query}}\n</Query>\n{{sample.output_text}}\n{{item.answer}}"
    made = new_eval(custom("query", "answer"), labels("pass", "fail", passing="pass", text=judged), *criteria)
    source = {
        "type": "responses",
        "source": contents({"query": "The city of the Louvre?", "answer": "Paris"}),
        "input_messages": template("Search for {{item.query}}"),
        "model": MODEL,
        "sampling_params": {**SAMPLING, "tools": [tool]},
    }

    error = raised(openai.BadRequestError, new_run, made.id, "refused", **source)

    status, kind, _, param = facts_of(error)
    same((status, kind), (400, "invalid_request_error"))
    assert tool["type"] in error.message, error.message
    assert str(param).startswith("data_source.sampling_params.tools"), param
    same(client.evals.runs.list(made.id).data, [])


@check("web-search-evaluation: a run that would search the web is refused, and named")
def _() -> None:
    refused_tool(WEB_SEARCH)


@check("mcp_eval_notebook: a run that would ask an MCP server is refused, and named")
def _() -> None:
    refused_tool(
        MCP,
        {
            "type": "python",
            "name": "Assert MCP was used",
            "image_tag": "2025-05-08",
            "pass_threshold": 1.0,
            "source": CALLED,
        },
    )


#: The notebook has pictures by URL, which a project needs a permission for.
PICTURE = "data:image/png;base64,iVBORw0KGgo="


@check("EvalsAPI_Image_Inputs: pictures reach the model and its judge, and the results are read into a table")
def _() -> None:
    grader = {
        "type": "score_model",
        "name": "Score Model Grader",
        "input": [
            {"role": "system", "content": "Score the answer."},
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "Prompt: {{ item.prompt }}."},
                    {"type": "input_image", "image_url": "{{ item.media_url }}", "detail": "auto"},
                    {
                        "type": "input_text",
                        "text": "Reference answer: {{ item.reference }}. Model response: {{ sample.output_text }}.",
                    },
                ],
            },
        ],
        "pass_threshold": 0.9,
        "range": [0, 1],
        "model": MODEL,
    }
    fields = ("media_url", "reference", "prompt")
    made = new_eval(custom(*fields, required=list(fields)), grader)
    picture = {"type": "input_image", "image_url": "{{ item.media_url }}", "detail": "auto"}
    messages = [
        {"role": "user", "type": "message", "content": {"type": "input_text", "text": "{{ item.prompt }}"}},
        {"role": "user", "type": "message", "content": picture},
    ]
    items = [{"media_url": PICTURE, "reference": "A dot.", "prompt": prompt} for prompt in ("What is it?", "Safe?")]

    run = new_run(
        made.id,
        "pictures",
        type="responses",
        source=contents(*items),
        model=MODEL,
        input_messages={"type": "template", "template": messages},
    )

    graded(run, len(items))
    rows = [
        (item.datasource_item["prompt"], item.datasource_item["reference"], item.sample.output[0].content)
        for item in items_of(run)
    ]
    same([row[:2] for row in rows], [(item["prompt"], item["reference"]) for item in items])
    for item, (_, _, said) in zip(items_of(run), rows, strict=True):
        assert f"Model response: {said}." in str(judgement(item)["input"][-1]["content"]), item
        same(json.loads(judgement(item)["output"][0]["content"])["result"], 1.5)


@check("EvalsAPI_Audio_Inputs: sounds in a file reach the model, and the results are read into a table")
def _() -> None:
    criterion = {
        "type": "string_check",
        "name": "String check grader",
        "input": "{{sample.output_text}}",
        "reference": "{{item.official_answer}}",
        "operation": "like",
    }
    config = custom("category", "official_answer", "audio_base64")
    config["item_schema"]["properties"]["id"] = {"type": "integer"}
    config["item_schema"]["required"] = ["id", "category", "official_answer", "audio_base64"]
    made = new_eval(config, criterion)
    given = {"category": "formal_fallacies", "official_answer": "echo", "audio_base64": "UklGRgAAAABXQVZF"}
    file_id = uploaded("evals_data_source.json", [{"item": {"id": n, **given}} for n in range(2)])
    sound = {"type": "input_audio", "input_audio": {"data": "{{ item.audio_base64 }}", "format": "wav"}}
    messages = [
        {"role": "system", "content": "Answer the question that you hear."},
        {"role": "user", "type": "message", "content": sound},
    ]

    run = new_run(
        made.id,
        "sounds",
        type="completions",
        source={"type": "file_id", "id": file_id},
        model=MODEL,
        input_messages={"type": "template", "template": messages},
    )

    graded(run, 2)
    rows = [(item.datasource_item["id"], item.results[0].passed) for item in items_of(run)]
    same(rows, [(0, True), (1, True)])


@check("the guide to evals: tickets in a file are labelled by a model, and compared")
def _() -> None:
    fields = ("ticket_text", "correct_label")
    criterion = {
        "type": "string_check",
        "name": "Match output to human label",
        "input": "{{ sample.output_text }}",
        "operation": "eq",
        "reference": "{{ item.correct_label }}",
    }
    made = new_eval(custom(*fields, required=list(fields)), criterion)
    rows = [{"item": {"ticket_text": text, "correct_label": "Hardware"}} for text in ("It smokes.", "No sound.")]
    file_id = uploaded("tickets.jsonl", rows)
    messages = [
        {"role": "developer", "content": "Answer with one label."},
        {"role": "user", "content": "{{ item.ticket_text }}"},
    ]

    run = new_run(
        made.id,
        "Categorization",
        type="responses",
        model=MODEL,
        input_messages={"type": "template", "template": messages},
        source={"type": "file_id", "id": file_id},
    )

    done = graded(run, len(rows))
    same(done.result_counts.failed, len(rows))
    (criteria,) = done.per_testing_criteria_results
    same((criteria.failed, criteria.passed), (len(rows), 0))
    (usage,) = done.per_model_usage
    same((usage.run_model_name, usage.invocation_count), (MODEL, len(rows)))


if __name__ == "__main__":
    import eval_guides, tuning_guides  # noqa: E401, F401, I001 (the checks of both come after those above)

    run_checks(openai.__version__)
