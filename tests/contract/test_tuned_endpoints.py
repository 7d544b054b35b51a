"""An adapter that was trained here is asked for wherever a model is named, and real vLLM answers with it."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.deployment import LIVE, LIVE_RUN, Deployment
from bench.tuning import jsonl
from cli.demo.system import running
from tests.contract.test_tuned_process import ANSWER, BASE, ENGINE, train
from tests.support.system import ROOT, eventually, pause

pytestmark = [pytest.mark.verify, pytest.mark.vllm, pytest.mark.timeout(1200)]
_EMBEDDER = "all-minilm-l6-v2"
_MODELS = {
    BASE: {
        "source": {"path": BASE},
        "engine": "vllm",
        "engine_args": ENGINE | {"enable_lora": True, "max_loras": 2, "max_lora_rank": 16},
    },
    _EMBEDDER: {"source": {"packaged": _EMBEDDER}, "engine": "embed"},
}
_SERVICES = """\
release: python -m jobs.bootstrap
web: python -m api
dispatcher: python -m workers.dispatcher
cpu: python -m workers cpu
"""
_TRAINING = f"{_SERVICES}finetune: python -m workers finetune\n"
_SERVING = f"""\
{_SERVICES}evaluate: python -m workers evaluate
gpu: python -m workers gpu
embed: python -m workers embed
"""
_QUESTION: Any = [{"role": "user", "content": "Is it 3?"}]


@contextmanager
def deployed(folder: Path, procfile: str, variables: Mapping[str, str] | None = None) -> Iterator[Deployment]:
    (folder / "Procfile").write_text(procfile)
    settings = {"NIGHTMILL_MODELS_FILE": str(folder / "models.yaml"), **(variables or {})}
    with running(folder / "data", ("--procfile", str(folder / "Procfile")), settings) as system:
        system.wait_until_ready()
        yield Deployment(system)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Deployment, str]]:
    """Yield a deployment that rewrites queries by the adapter that was trained in it before, and its name."""
    folder = tmp_path_factory.mktemp("tuned")
    making = "from pathlib import Path; from tests.support import tiny_llama; import sys; "
    making += "tiny_llama.write(Path(sys.argv[1]), hidden_size=128, max_position_embeddings=1024)"
    subprocess.run([sys.executable, "-c", making, str(folder / BASE)], check=True, cwd=ROOT)
    (folder / "models.yaml").write_text(json.dumps({"models": _MODELS}))
    with deployed(folder, _TRAINING) as inline:
        name = train(inline, "lora")
    rewriting = {"NIGHTMILL_REWRITE_MODEL": name}
    with deployed(folder, _SERVING, rewriting) as inline:
        inline.wait_for("gpu.generate")
        inline.wait_for("gpu.embed")
        yield inline, name


def ended(inline: Deployment, look: Callable[[], Any], live: tuple[str, ...] | frozenset[str]) -> Any:
    """Return what `look` returns once its status is none of `live`."""
    while (seen := look()).status in live:
        inline.system.check()
        pause(0.3)
    return seen


def test_chats_and_completions_are_answered_by_the_adapter(tuned: tuple[Deployment, str]) -> None:
    inline, name = tuned
    asked: Any = {"messages": _QUESTION, "max_tokens": 8, "temperature": 0}
    prompt = "<|im_start|>user\nIs it 3?<|im_end|>\n<|im_start|>assistant\n"

    raw = inline.client.chat.completions.with_raw_response.create(model=name, **asked)
    base = inline.client.chat.completions.create(model=BASE, **asked)
    chunks = list(inline.client.chat.completions.create(model=name, stream=True, **asked))
    text = inline.client.completions.create(model=name, prompt=prompt, max_tokens=8, temperature=0)

    chat = raw.parse()
    assert (chat.model, chat.choices[0].message.content, chat.choices[0].finish_reason) == (name, ANSWER, "stop")
    assert raw.headers["x-nightmill-model"].startswith(f"{BASE}+lora-")
    assert chat.system_fingerprint == raw.headers["x-nightmill-model"]
    assert base.choices[0].message.content != ANSWER
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert {chunk.model for chunk in chunks} == {name}
    assert (text.model, text.choices[0].text) == (name, ANSWER)


def test_responses_are_answered_by_the_adapter_at_once_streamed_and_in_the_background(
    tuned: tuple[Deployment, str],
) -> None:
    inline, name = tuned
    asked: Any = {"model": name, "max_output_tokens": 8, "temperature": 0}
    create = inline.client.responses.create

    first = create(input="Is it 3?", **asked)
    following = create(input="Is it 4?", previous_response_id=first.id, **asked)
    events = list(create(input="Is it 5?", stream=True, **asked))
    begun = create(input="Is it 6?", background=True, **asked)
    background = ended(inline, lambda: inline.client.responses.retrieve(begun.id), ("queued", "in_progress"))

    last: Any = events[-1]
    answers = [first, following, last.response, background]
    assert [(one.status, one.model, one.output_text) for one in answers] == [("completed", name, ANSWER)] * 4


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/v1/chat/completions", {"messages": _QUESTION, "max_tokens": 8}),
        ("/v1/responses", {"input": "Is it 3?", "max_output_tokens": 8}),
    ],
)
def test_lines_of_a_batch_are_answered_by_the_adapter(
    tuned: tuple[Deployment, str], url: Any, body: dict[str, Any]
) -> None:
    inline, name = tuned
    lines = [
        {"custom_id": str(n), "method": "POST", "url": url, "body": {"model": name, "temperature": 0, **body}}
        for n in range(3)
    ]
    file = inline.client.files.create(file=("lines.jsonl", jsonl(lines)), purpose="batch")

    batch = inline.client.batches.create(input_file_id=file.id, endpoint=url, completion_window="24h")
    done = ended(inline, lambda: inline.client.batches.retrieve(batch.id), tuple(LIVE))

    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 3, 0)
    results = [json.loads(line)["response"] for line in inline.client.files.content(done.output_file_id).iter_lines()]
    assert [result["body"]["model"] for result in results] == [name] * 3
    assert [text_of(result["body"]) for result in results] == [ANSWER] * 3


def text_of(body: dict[str, Any]) -> str:
    message = body["choices"][0]["message"] if "choices" in body else body["output"][0]
    return str(message["content"] if "choices" in body else message["content"][0]["text"])


@pytest.mark.parametrize("kind", ["completions", "responses"])
def test_runs_of_evaluations_are_answered_by_the_adapter(tuned: tuple[Deployment, str], kind: str) -> None:
    inline, name = tuned
    schema = {"type": "object", "properties": {"question": {"type": "string"}}, "required": ["question"]}
    same: Any = {"type": "string_check", "name": "same", "operation": "eq", "reference": ANSWER}
    config: Any = {"type": "custom", "item_schema": schema, "include_sample_schema": True}
    made = inline.client.evals.create(
        name="e", data_source_config=config, testing_criteria=[same | {"input": "{{ sample.output_text }}"}]
    )
    source: Any = {
        "type": kind,
        "model": name,
        "source": {"type": "file_content", "content": [{"item": {"question": f"Is it {n}?"}} for n in range(3)]},
        "input_messages": {"type": "template", "template": [{"role": "user", "content": "{{ item.question }}"}]},
        "sampling_params": {"temperature": 0, "max_completion_tokens": 8},
    }

    run = inline.client.evals.runs.create(made.id, name="r", data_source=source)
    done = ended(inline, lambda: inline.client.evals.runs.retrieve(run.id, eval_id=made.id), LIVE_RUN)

    assert (done.status, done.result_counts.passed, done.result_counts.total) == ("completed", 3, 3)
    assert [(usage.run_model_name, usage.invocation_count) for usage in done.per_model_usage] == [(name, 3)]


def test_perplexity_of_a_text_is_lower_to_the_adapter_than_to_its_base(tuned: tuple[Deployment, str]) -> None:
    inline, name = tuned
    text = f"<|im_start|>user\nIs it 3?<|im_end|>\n<|im_start|>assistant\n{ANSWER}<|im_end|>\n"
    config: Any = {"type": "custom", "item_schema": {"type": "object", "properties": {"text": {"type": "string"}}}}
    criterion: Any = {"type": "perplexity", "name": "likely", "max_perplexity": 1e6}
    made = inline.client.evals.create(name="p", data_source_config=config, testing_criteria=[criterion])
    rows = {"type": "file_content", "content": [{"item": {"text": text}}]}

    def perplexity(model: str) -> float:
        source: Any = {"type": "perplexity", "model": model, "text": "{{ item.text }}", "source": rows}
        run = inline.client.evals.runs.create(made.id, name=model, data_source=source)
        done = ended(inline, lambda: inline.client.evals.runs.retrieve(run.id, eval_id=made.id), LIVE_RUN)
        assert (done.status, done.result_counts.errored) == ("completed", 0)
        return float(done.per_testing_criteria_results[0].to_dict()["perplexity"])

    assert perplexity(name) < perplexity(BASE)


def test_queries_are_rewritten_and_files_searched_by_the_adapter(tuned: tuple[Deployment, str]) -> None:
    inline, name = tuned
    store = inline.client.vector_stores.create(name="s", extra_body={"embedding_model": _EMBEDDER})
    for file_name, text in {"a.txt": "It says yes.", "b.txt": "Lava flows from a volcano."}.items():
        inline.client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=(file_name, text.encode()))

    found: Any = None

    def has_rewritten() -> bool:  # a slow machine loads the adapter longer than a rewrite may take
        nonlocal found
        found = inline.client.vector_stores.search(store.id, query="Is it 3?", rewrite_query=True)
        return bool(found.model_extra["search_query"] == [ANSWER])

    eventually(has_rewritten, 120, "the adapter has rewritten the query")
    tool: Any = {"type": "file_search", "vector_store_ids": [store.id], "max_num_results": 1}
    response = inline.client.responses.create(
        model=name, input="Is it 3?", tools=[tool], max_output_tokens=8, temperature=0
    )

    assert found.data[0].filename == "a.txt"
    assert (response.model, response.output[0].type, response.output_text) == (name, "file_search_call", ANSWER)
