"""Flows of client libraries that are built on the SDK, one line of JSON a check, as `suite.py` prints them.

    python clients.py '{"url": …}'       the facts are those of tests.sdk.deployment

A prompt with "!tool" makes the fake engine call the first function that the request offers.
"""

import asyncio
import json
import os
import tempfile
from importlib.metadata import version
from typing import Any

from checking import FACTS, MODEL, check, client, fresh, run_checks, same, until

URL, KEY = f"{FACTS['url']}/v1", FACTS["key"]
# Before the imports below: what some of them read when they are imported.
os.environ |= {
    "OPENAI_BASE_URL": URL,
    "OPENAI_API_KEY": KEY,
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "INSPECT_LOG_DIR": tempfile.mkdtemp(prefix="inspect-"),
}

import agents  # noqa: E402
import inspect_ai  # noqa: E402
import litellm  # noqa: E402
import openai  # noqa: E402
from inspect_ai.dataset import Sample  # noqa: E402
from inspect_ai.model import BatchConfig, GenerateConfig, get_model  # noqa: E402
from inspect_ai.scorer import includes  # noqa: E402
from inspect_ai.solver import generate  # noqa: E402
from pydantic import BaseModel  # noqa: E402
from pydantic_ai import Agent  # noqa: E402
from pydantic_ai.models.openai import (  # noqa: E402
    OpenAIChatModel,
    OpenAIResponsesModel,
    OpenAIResponsesModelSettings,
)
from pydantic_ai.providers.openai import OpenAIProvider  # noqa: E402

LIBRARIES = ("inspect-ai", "langchain-openai", "litellm", "openai-agents", "pydantic-ai-slim")
TO_SERVER: dict[str, Any] = {"api_base": URL, "api_key": KEY}
OPENAI: dict[str, Any] = {**TO_SERVER, "custom_llm_provider": "openai"}
LITELLM_MODEL = f"openai/{MODEL}"
CALL = "Will it rain? !tool"
litellm.telemetry = False


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@check("litellm: a chat and a response are answered, whole and as a stream")
def _() -> None:
    whole = litellm.completion(model=LITELLM_MODEL, messages=user("Hello"), **TO_SERVER)
    chunks = litellm.completion(model=LITELLM_MODEL, messages=user("Hello"), stream=True, **TO_SERVER)
    response = litellm.responses(model=LITELLM_MODEL, input="Hello", **TO_SERVER)
    events = litellm.responses(model=LITELLM_MODEL, input="Hello", stream=True, **TO_SERVER)

    text = whole.choices[0].message.content
    same("".join(chunk.choices[0].delta.content or "" for chunk in chunks), text)
    same(response.output[0].content[0].text, text)
    same([event.response.status for event in events if event.type == "response.completed"], ["completed"])


@check("litellm: a function is called")
def _() -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}

    [call] = (
        litellm.completion(model=LITELLM_MODEL, messages=user(CALL), tools=[tool], **TO_SERVER)
        .choices[0]
        .message.tool_calls
    )

    same((call.function.name, call.function.arguments), ("weather", "{}"))


@check("litellm: texts are embedded")
def _() -> None:
    answer = litellm.embedding(model=LITELLM_MODEL, input=["one", "two"], **TO_SERVER)

    same([item["index"] for item in answer.data], [0, 1])


@check("litellm: a batch runs to its output")
def _() -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
    content = json.dumps({**line, "body": {"model": MODEL, "messages": user("Hello")}}).encode()
    file = litellm.create_file(file=("input.jsonl", content), purpose="batch", **OPENAI)
    batch = litellm.create_batch(
        completion_window="24h", endpoint="/v1/chat/completions", input_file_id=file.id, **OPENAI
    )

    def ended() -> Any:
        now = litellm.retrieve_batch(batch_id=batch.id, **OPENAI)
        return now if now.status == "completed" else None

    output = litellm.file_content(file_id=until(ended, "the batch").output_file_id, **OPENAI)
    same(json.loads(output.text)["custom_id"], "a")
    same(batch.id in [one.id for one in litellm.list_batches(**OPENAI).data], True)


@check("litellm: a vector store is searched")
def _() -> None:
    store = litellm.vector_stores.create(name=fresh("store"), **OPENAI)
    file = client.files.create(file=("cats.txt", b"Cats sleep for sixteen hours a day."), purpose="assistants")
    client.vector_stores.files.create_and_poll(file.id, vector_store_id=store["id"], poll_interval_ms=100)

    found = litellm.vector_stores.search(vector_store_id=store["id"], query="How long do cats sleep?", **OPENAI)

    same([item["file_id"] for item in found["data"]], [file.id])


@agents.function_tool
def weather(city: str) -> str:
    """Return the weather of a city."""
    return f"sunny in {city}"


def agent(model: type[agents.Model]) -> agents.Agent[Any]:
    return agents.Agent(
        "forecaster", instructions="Be brief.", model=model(MODEL, openai.AsyncOpenAI()), tools=[weather]
    )


async def outputs_of_a_run(forecaster: agents.Agent[Any]) -> list[str]:
    """Call the tool, go on from the items, then do the first again as a stream."""
    first = await agents.Runner.run(forecaster, CALL)
    same([item.output for item in first.new_items if item.type == "tool_call_output_item"], ["sunny in echo"])
    second = await agents.Runner.run(forecaster, [*first.to_input_list(), *user("And tomorrow?")])
    streamed = agents.Runner.run_streamed(forecaster, CALL)
    kinds = [event.type async for event in streamed.stream_events()]
    same("raw_response_event" in kinds, True)
    return [first.final_output, second.final_output, streamed.final_output]


@check("openai-agents: a tool is called over chat completions, whole and as a stream")
def _() -> None:
    first, second, streamed = asyncio.run(outputs_of_a_run(agent(agents.OpenAIChatCompletionsModel)))

    same((first[:5], second[:5]), ("echo ", "echo "))
    same(streamed, first)


@check("openai-agents: a tool is called over responses, whole and as a stream")
def _() -> None:
    first, second, streamed = asyncio.run(outputs_of_a_run(agent(agents.OpenAIResponsesModel)))

    same((first[:5], second[:5]), ("echo ", "echo "))
    same(streamed, first)


@check("openai-agents: a run goes on from the last response, or from a conversation")
def _() -> None:
    async def run() -> tuple[Any, ...]:
        forecaster = agent(agents.OpenAIResponsesModel)
        first = await agents.Runner.run(forecaster, CALL)
        later = await agents.Runner.run(forecaster, "Go on.", previous_response_id=first.last_response_id)
        session = agents.OpenAIConversationsSession(openai_client=openai.AsyncOpenAI())
        await agents.Runner.run(forecaster, CALL, session=session)
        await agents.Runner.run(forecaster, "Go on.", session=session)
        return later.final_output, [item.get("type") for item in await session.get_items()]

    later, kinds = asyncio.run(run())

    same(later[:5], "echo ")
    same(kinds, ["message", "function_call", "function_call_output", "message", "message", "message"])


class Forecast(BaseModel):
    city: str
    days: int


def pydantic_flow(model: Any) -> tuple[str, str]:
    """Call a tool, go on from the messages, then do the first again as a stream; the texts of the last two."""
    forecaster = Agent(model, instructions="Be brief.")
    called: list[str] = []

    @forecaster.tool_plain
    def weather(city: str) -> str:
        called.append(city)
        return "sunny"

    first = forecaster.run_sync(CALL)
    same(called, ["echo"])
    second = forecaster.run_sync("And tomorrow?", message_history=first.all_messages())
    same(second.output[:5], "echo ")

    async def stream() -> str:
        async with forecaster.run_stream(CALL) as run:
            return "".join([part async for part in run.stream_text(delta=True)])

    return first.output, asyncio.run(stream())


def pydantic_model(kind: Any) -> Any:
    return kind(MODEL, provider=OpenAIProvider(base_url=URL, api_key=KEY))


@check("pydantic-ai: a tool is called over chat completions, whole and as a stream")
def _() -> None:
    whole, streamed = pydantic_flow(pydantic_model(OpenAIChatModel))

    same(streamed, whole)


@check("pydantic-ai: a tool is called over responses, whole and as a stream")
def _() -> None:
    whole, streamed = pydantic_flow(pydantic_model(OpenAIResponsesModel))

    same(streamed, whole)


@check("pydantic-ai: an output has the type that was asked for")
def _() -> None:
    for kind in (OpenAIChatModel, OpenAIResponsesModel):
        run = Agent(pydantic_model(kind), output_type=Forecast).run_sync(CALL)
        same(run.output, Forecast(city="echo", days=1))


@check("pydantic-ai: a run goes on from the last response")
def _() -> None:
    forecaster = Agent(pydantic_model(OpenAIResponsesModel))
    first = forecaster.run_sync("Hello")
    settings = OpenAIResponsesModelSettings(openai_previous_response_id="auto")

    later = forecaster.run_sync("Go on.", message_history=first.all_messages(), model_settings=settings)

    same(later.output[:5], "echo ")


def inspect_log(batch: BatchConfig | None, *, responses: bool) -> Any:
    model = get_model(
        f"openai/{MODEL}", base_url=URL, api_key=KEY, responses_api=responses, config=GenerateConfig(batch=batch)
    )
    samples = [Sample(input=f"Question {n}", target="echo") for n in range(5)]
    task = inspect_ai.Task(dataset=samples, solver=generate(), scorer=includes())
    [log] = inspect_ai.eval(task, model=model, display="none")
    return log


@check("inspect-ai: an evaluation runs over chat completions and responses")
def _() -> None:
    for responses in (False, True):
        log = inspect_log(None, responses=responses)
        same((log.status, log.results.scores[0].metrics["accuracy"].value), ("success", 1.0))


@check("inspect-ai: an evaluation runs as batches")
def _() -> None:
    before = {batch.id for batch in client.batches.list(limit=100)}
    for responses in (False, True):
        log = inspect_log(BatchConfig(size=5, send_delay=0.5, tick=0.2), responses=responses)
        same((log.status, log.results.scores[0].metrics["accuracy"].value), ("success", 1.0))
    made = [batch for batch in client.batches.list(limit=100) if batch.id not in before]

    same({batch.endpoint for batch in made}, {"/v1/chat/completions", "/v1/responses"})
    same(sum(batch.request_counts.completed for batch in made), 10)


if __name__ == "__main__":
    run_checks(" ".join(f"{name}={version(name)}" for name in LIBRARIES))
