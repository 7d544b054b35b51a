"""OpenAI's notebooks and guides about fine-tuning: their requests, over data of our own. Run by `notebooks.py`.

The notebooks are in github.com/openai/openai-cookbook, `examples`. `FACTS["bases"]` are two models that can be trained:
the chat template of the first knows no tools, that of the second does. The trainer computes nothing.
"""

import asyncio
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import openai
from checking import FACTS, check, facts_of, raised, same, until

client = openai.OpenAI()
jobs = client.fine_tuning.jobs
PLAIN, CALLING = FACTS["bases"]
#: Seconds for a job, whose files are examined in processes that load libraries.
PATIENCE = 240
SYSTEM = "You name the ingredients."


def asked_messages(question: str) -> list[Any]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]


def chat_row(n: int) -> dict[str, Any]:
    return {"messages": [*asked_messages(f"Ingredients: {n} eggs"), {"role": "assistant", "content": '["eggs"]'}]}


def uploaded(rows: list[Any], name: str = "train.jsonl") -> str:
    """Upload rows from memory, without a last line feed, as the guide to preferences does."""
    buffer = io.BytesIO("\n".join(json.dumps(row) for row in rows).encode())
    buffer.name = name
    return client.files.create(file=buffer, purpose="fine-tune").id


def ended(job: Any) -> Any:
    def look() -> Any:
        current = jobs.retrieve(job.id)
        return current if current.status in ("succeeded", "failed", "cancelled") else None

    return until(look, f"the end of {job.id}", PATIENCE)


def trained(job: Any) -> str:
    """Wait for a job, and return the name of its model."""
    done = ended(job)
    same((done.status, done.error), ("succeeded", None))
    return str(done.fine_tuned_model)


@check("How_to_finetune_chat_models: a job with validation is followed by its events, and its model is asked")
def _() -> None:
    rows = {"training": [chat_row(n) for n in range(12)], "validation": [chat_row(n) for n in range(20, 24)]}
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, examples in rows.items():
            path = Path(folder) / f"tmp_recipe_finetune_{name}.jsonl"
            path.write_text("".join(json.dumps(example) + "\n" for example in examples))
            with path.open("rb") as handle:
                files[name] = openai.files.create(file=handle, purpose="fine-tune").id

    made = openai.fine_tuning.jobs.create(
        training_file=files["training"], validation_file=files["validation"], model=PLAIN, suffix="recipe-ner"
    )
    same((made.status, made.trained_tokens, made.validation_file), ("validating_files", None, files["validation"]))
    model = trained(made)

    events = openai.fine_tuning.jobs.list_events(made.id).data
    events.reverse()
    messages = [event.message for event in events]
    same(messages[-1], "The job has successfully completed")
    assert f"New fine-tuned model created: {model}" in messages, messages
    for loss in ("training loss=", "validation loss="):
        assert any(loss in text for text in messages), messages
    done = openai.fine_tuning.jobs.retrieve(made.id)
    assert done.trained_tokens, done
    assert done.result_files, done
    assert model.startswith(f"ft:{PLAIN}:"), model
    assert ":recipe-ner:" in model, model
    answer = openai.chat.completions.create(
        model=model, messages=asked_messages("Ingredients: 3 eggs"), temperature=0, max_tokens=500
    )
    same(answer.model, model)
    assert answer.choices[0].message.content, answer
    checkpoints = client.fine_tuning.jobs.checkpoints.list(made.id).data
    same(checkpoints[0].fine_tuned_model_checkpoint, f"{model}:ckpt-step-{checkpoints[0].step_number}")
    assert checkpoints[0].metrics.full_valid_loss is not None, checkpoints[0]


@check("Fine_tuning_direct_preference_optimization_guide: pairs are learned between two runs over logged responses")
def _() -> None:
    pairs = [
        {
            "input": {"messages": asked_messages(f"When does order {n} arrive?")},
            "preferred_output": [{"role": "assistant", "content": f"Order {n} arrives on Monday!"}],
            "non_preferred_output": [{"role": "assistant", "content": "Look it up."}],
        }
        for n in range(20)
    ]
    test_pairs, train, validation = pairs[:2], uploaded(pairs[2:16]), uploaded(pairs[16:], "val.jsonl")
    questions = [pair["input"]["messages"][1]["content"] for pair in test_pairs]

    async def respond(model: str) -> list[str]:
        async with openai.AsyncOpenAI() as eager:
            responses = await asyncio.gather(
                *(
                    eager.responses.create(
                        model=model, input=asked_messages(text), temperature=0.0, max_output_tokens=80
                    )
                    for text in questions
                )
            )
        return [response.output_text for response in responses]

    judged = "**User input**\n{{item.input}}\n**Response to evaluate**\n{{sample.output_text}}"
    criterion: Any = {
        "type": "score_model",
        "name": "General Evaluator",
        "model": PLAIN,
        "input": [{"role": "system", "content": "Score 0 to 4."}, {"role": "user", "content": judged}],
        "range": [0, 4],
        "pass_threshold": 2,
    }
    logs_eval = client.evals.create(name="Tone", data_source_config={"type": "logs"}, testing_criteria=[criterion])

    def run(name: str) -> Any:
        source: Any = {"type": "responses", "source": {"type": "responses", "limit": len(test_pairs)}}
        return client.evals.runs.create(name=name, eval_id=logs_eval.id, data_source=source)

    def scored(run: Any) -> list[tuple[str, float]]:
        """Return what was said and its score by item."""

        def look() -> Any:
            current = client.evals.runs.retrieve(run.id, eval_id=logs_eval.id)
            return current if current.status in ("completed", "failed") else None

        same(until(look, f"the end of {run.id}").status, "completed")
        data: Any = client.evals.runs.output_items.list(eval_id=logs_eval.id, run_id=run.id).data
        return [(item.sample.output[0].content, item.results[0].score) for item in data]

    said = asyncio.run(respond(PLAIN))
    base = scored(run(PLAIN))
    made = jobs.create(
        model=PLAIN,
        training_file=train,
        validation_file=validation,
        method={"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 2, "beta": 0.1, "batch_size": 8}}},
    )
    method: Any = made.method
    numbers = method.dpo.hyperparameters
    same((method.type, numbers.n_epochs, numbers.beta, numbers.batch_size), ("dpo", 2, 0.1, 8))
    said_later = asyncio.run(respond(trained(made)))
    tuned = scored(run(made.id))

    same((sorted(text for text, _ in base), sorted(text for text, _ in tuned)), (sorted(said), sorted(said_later)))
    assert set(said).isdisjoint(said_later), (said, said_later)
    same({score for _, score in base + tuned}, {1.5})


FUNCTIONS: list[Any] = [
    {
        "name": "takeoff_drone",
        "description": "Take off.",
        "parameters": {
            "type": "object",
            "properties": {"altitude": {"type": "integer", "description": "Metres."}},
            "required": ["altitude"],
        },
    },
    {"name": "reject_request", "description": "Refuse.", "parameters": {"type": "object", "properties": {}}},
]


def function_row(n: int) -> dict[str, Any]:
    """Return a row of the notebook about functions: a call without content, in the spelling of functions."""
    call = {"name": "takeoff_drone", "arguments": json.dumps({"altitude": n})}
    return {
        "messages": [*asked_messages(f"Up to {n} metres"), {"role": "assistant", "function_call": call}],
        "functions": FUNCTIONS,
    }


def tool_row(n: int) -> dict[str, Any]:
    """Return a row of the guide to supervised fine-tuning: a call of a tool."""
    function = {"name": "takeoff_drone", "arguments": json.dumps({"altitude": n})}
    calls = [{"id": "call_id", "type": "function", "function": function}]
    return {
        "messages": [{"role": "user", "content": f"Climb to {n}"}, {"role": "assistant", "tool_calls": calls}],
        "parallel_tool_calls": False,
        "tools": [{"type": "function", "function": function} for function in FUNCTIONS],
    }


def weighted_row(n: int) -> dict[str, Any]:
    """Return a row of the guide with two turns, of which the second alone is learned."""
    turns = [
        {"role": "user", "content": f"And {n}?"},
        {"role": "assistant", "content": "No.", "weight": 0},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": f"It is {n}.", "weight": 1},
    ]
    return {"messages": [{"role": "system", "content": SYSTEM}, *turns]}


@check("Fine_tuning_for_function_calling: a base whose chat template knows no tools is refused with the line")
def _() -> None:
    made = jobs.create(model=PLAIN, training_file=uploaded([*map(chat_row, range(12)), function_row(5)]))

    done = ended(made)
    same((done.status, done.fine_tuned_model), ("failed", None))
    same((done.error.code, done.error.param), ("invalid_example", "training_file"))
    assert done.error.message.startswith("Line 13: "), done.error
    assert "knows no tools" in done.error.message, done.error


@check("Fine_tuning_for_function_calling and the guide to fine-tuning: rows of calls and weights are learned")
def _() -> None:
    rows = [make(n) for n in range(5) for make in (function_row, tool_row, weighted_row)]
    made = jobs.create(model=CALLING, training_file=uploaded(rows), hyperparameters={"n_epochs": 2})

    same(made.hyperparameters.n_epochs, 2)
    model = trained(made)
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Climb to 5"}],
        tools=[{"type": "function", "function": function} for function in FUNCTIONS],
    )
    calls: Any = answer.choices[0].message.tool_calls
    same((answer.model, calls[0].function.name), (model, "takeoff_drone"))
    same(json.loads(calls[0].function.arguments).keys(), {"altitude"})


@check("Leveraging_model_distillation_to_fine-tune_a_model: answers of a schema are stored, and listed by metadata")
def _() -> None:
    schema = {
        "type": "object",
        "properties": {"variety": {"type": "string", "enum": ["Gamay", "Merlot"]}},
        "additionalProperties": False,
        "required": ["variety"],
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "grape-variety", "schema": schema, "strict": True}}
    tag = {"distillation": "wine-distillation"}
    made = [
        client.chat.completions.create(
            model=PLAIN, store=True, metadata=tag, messages=asked_messages(text), response_format=form
        )
        for text in ("A light red?", "A dark red?")
    ]

    same([json.loads(str(one.choices[0].message.content).strip())["variety"] for one in made], ["Gamay"] * 2)
    listed = list(client.chat.completions.list(model=PLAIN, metadata=tag))
    same(sorted(one.id for one in listed), sorted(one.id for one in made))
    messages = client.chat.completions.messages.list(made[0].id).data
    same([one.content for one in messages], [SYSTEM, "A light red?"])


@check("the guides to vision and to reinforcement: rows of pictures and the method are refused")
def _() -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    seen = {"messages": [{"role": "user", "content": [picture]}, {"role": "assistant", "content": "A cat."}]}
    grader: Any = {
        "type": "string_check",
        "name": "same",
        "input": "{{ sample.output_text }}",
        "reference": "{{ item.reference_answer }}",
        "operation": "eq",
    }
    reinforcement: Any = {"grader": grader, "hyperparameters": {"reasoning_effort": "medium"}}
    method: Any = {"type": "reinforcement", "reinforcement": reinforcement}

    done = ended(jobs.create(model=PLAIN, training_file=uploaded([*map(chat_row, range(12)), seen])))
    error = raised(
        openai.BadRequestError, jobs.create, model=PLAIN, training_file=uploaded([chat_row(1)]), method=method
    )

    same((done.status, done.error.param), ("failed", "training_file"))
    assert done.error.message.startswith("Line 13: "), done.error
    status, kind, _, param = facts_of(error)
    same((status, kind), (400, "invalid_request_error"))
    assert str(param).startswith("method."), param
