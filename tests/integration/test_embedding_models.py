"""Test several embedding models side by side in a whole deployment, through the official SDK.

Three of them are in one process, one of these the packaged model under another name and with prompts; one is in a queue
and a process of its own.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from openai import OpenAI

from tests.support import tiny_bert, tiny_roberta
from tests.support.system import ROOT, StubEngine, System, eventually
from workers.engines.model_folders import MINILM

pytestmark = [pytest.mark.verify, pytest.mark.timeout(300)]

PROMPTED, TINY, CODE = "minilm-prompted", "tiny", "code"
LONG = "word " * 600
TEXTS = {
    "kiwi": "The kiwi is a flightless bird of New Zealand.",
    "emu": "The emu is a tall bird of Australia.",
    "lava": "Lava is molten rock that flows from a volcano.",
    "long": f"Tides follow the moon. {'The sea rises and falls. ' * 90}",
    "brot": "Brot wird aus Mehl, Wasser und Salz gebacken.",
}
QUERIES = [
    {"query": "a bird that cannot fly", "relevant": ["kiwi.txt"], "language": "en"},
    {"query": "hot liquid rock", "relevant": ["lava.txt"], "language": "en"},
    {"query": "Brot backen", "relevant": ["brot.txt"], "language": "de"},
]
VECTORS_ALONE = {"hybrid_search": {"embedding_weight": 1, "text_weight": 0}}


@dataclass
class InlineDeployment:
    system: System
    client: OpenAI

    def vectors(self, model: str, inputs: Any, **fields: Any) -> Any:
        answer = self.client.embeddings.create(model=model, input=inputs, extra_body=fields)
        return np.asarray([one.embedding for one in answer.data])


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InlineDeployment]:
    folder = tmp_path_factory.mktemp("embedders")
    for name, write in (("tiny", tiny_bert.write), ("code", tiny_roberta.write)):
        (folder / name).mkdir()
        write(folder / name)
    plain = {"dtype": "float32"}
    prompts = plain | {"query_prompt": "query: ", "passage_prompt": "passage: "}
    models = {
        MINILM: {"source": {"packaged": MINILM}, "engine": "embed", "engine_args": plain},
        PROMPTED: {"source": {"packaged": MINILM}, "engine": "embed", "engine_args": prompts, "license": "as MiniLM's"},
        TINY: {"source": {"path": "tiny"}, "engine": "embed", "engine_args": plain},
        CODE: {"source": {"path": "code"}, "engine": "embed", "queue": "gpu.code", "engine_args": plain},
    }
    (folder / "models.yaml").write_text(json.dumps({"models": models}))
    procfile = folder / "Procfile"
    procfile.write_text(f"{(ROOT / 'Procfile').read_text()}code: python -m workers embed gpu.code\n")
    with StubEngine(folder, "stub-model") as chat:
        given = {"NIGHTMILL_VLLM_ENABLED": "false", "NIGHTMILL_ENGINE_URLS": chat.url}
        system = System(folder, procfile=procfile, NIGHTMILL_MODELS_FILE=str(folder / "models.yaml"), **given)
        try:
            system.start()
            eventually(lambda: alive(system) >= {"gpu.embed", "gpu.code"}, 120, "the embedding models are there")
            with OpenAI(base_url=f"{system.url}/v1", api_key=system.api_key, timeout=60) as client:
                yield InlineDeployment(system, client)
        finally:
            system.destroy()


def alive(system: System) -> set[str]:
    with suppress(httpx2.HTTPError):
        return set(httpx2.get(f"{system.url}/statusz", timeout=30).json()["workers"])
    return set()


def test_each_model_answers_with_its_own_vectors(inline: InlineDeployment) -> None:
    found = {model: inline.vectors(model, ["a bird"]) for model in (MINILM, PROMPTED, TINY, CODE)}

    assert {model: rows.shape for model, rows in found.items()} == {
        MINILM: (1, 384), PROMPTED: (1, 384), TINY: (1, 64), CODE: (1, 64),
    }  # fmt: skip
    assert found[MINILM] == pytest.approx(found[PROMPTED], abs=1e-5)
    assert inline.vectors(PROMPTED, ["a bird"], input_type="query") == pytest.approx(
        inline.vectors(MINILM, ["query: a bird"]), abs=1e-5
    )


@pytest.mark.parametrize(("model", "longest"), [(MINILM, 256), (TINY, 128), (CODE, 512)])
def test_overlong_input_is_refused_unless_truncation_is_requested(
    inline: InlineDeployment, model: str, longest: int
) -> None:
    for inputs in (LONG, [5] * 600):
        with pytest.raises(openai.BadRequestError, match=f"maximum context length is {longest} tokens") as caught:
            inline.vectors(model, inputs)
        assert caught.value.code == "context_length_exceeded"

        cut = inline.client.embeddings.create(model=model, input=inputs, extra_body={"truncate": True})
        assert cut.usage.prompt_tokens == longest
        assert (cut.model_extra or {})["truncated"] == [0]
    assert inline.client.models.retrieve(model).model_extra["max_model_len"] == longest  # type: ignore[index]


def test_batch_lines_respect_input_type_and_truncation(inline: InlineDeployment, tmp_path: Path) -> None:
    bodies = {
        "query": {"input": "a bird", "input_type": "query"},
        "plain": {"input": "a bird"},
        "odd": {"input": "a bird", "input_type": "poem"},
        "long": {"input": LONG},
        "cut": {"input": LONG, "truncate": True},
    }
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/embeddings", "body": {"model": PROMPTED, **body}}
        for name, body in bodies.items()
    ]
    file = tmp_path / "batch.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with file.open("rb") as handle:
        uploaded = inline.client.files.create(file=handle, purpose="batch")
    batch = inline.client.batches.create(input_file_id=uploaded.id, endpoint="/v1/embeddings", completion_window="24h")
    eventually(lambda: inline.client.batches.retrieve(batch.id).status == "completed", 60, "the batch has ended")

    done = inline.client.batches.retrieve(batch.id)
    good, bad = (results(inline, name) for name in (done.output_file_id, done.error_file_id))
    assert {name: one["error"]["code"] for name, one in bad.items()} == {"odd": None, "long": "context_length_exceeded"}
    assert good.keys() == {"query", "plain", "cut"}
    query = good["query"]["data"][0]["embedding"]
    assert query == pytest.approx(inline.vectors(MINILM, "query: a bird")[0], abs=1e-5)


def results(inline: InlineDeployment, file_id: str | None) -> dict[str, Any]:
    assert file_id
    lines = inline.client.files.content(file_id).text.splitlines()
    return {line["custom_id"]: line["response"]["body"] for line in map(json.loads, lines)}


@pytest.fixture(scope="module")
def stores(inline: InlineDeployment) -> dict[str, str]:
    """Return a store of the same files for each model, by the name of the model."""
    files = [
        inline.client.files.create(file=(f"{name}.txt", text.encode()), purpose="assistants").id
        for name, text in TEXTS.items()
    ]
    stores = {}
    for model in (MINILM, PROMPTED, TINY, CODE):
        store = inline.client.vector_stores.create(extra_body={"embedding_model": model})
        batch = inline.client.vector_stores.file_batches.create_and_poll(store.id, file_ids=files, poll_interval_ms=200)
        assert (batch.file_counts.completed, batch.file_counts.failed) == (len(files), 0), model
        stores[model] = store.id
    return stores


def test_stores_of_different_models_are_searched_side_by_side(inline: InlineDeployment, stores: dict[str, str]) -> None:
    for model, store in stores.items():
        found = inline.client.vector_stores.search(
            store, query="a bird that cannot fly", extra_body={"ranking_options": VECTORS_ALONE}
        )
        names = [one.filename for one in found]
        assert set(names) <= {f"{name}.txt" for name in TEXTS}
        if model in (MINILM, PROMPTED):  # the others' weights are random
            assert names[0] == "kiwi.txt"
        assert inline.client.vector_stores.retrieve(store).model_extra["embedding_model"] == model  # type: ignore[index]


def test_models_are_compared_by_an_eval_over_their_stores(inline: InlineDeployment, stores: dict[str, str]) -> None:
    fields = {"input": "{{ sample.output_json.filenames }}", "reference": "{{ item.relevant }}"}
    criteria: Any = [
        {"type": "ranking", "name": f"{measure}@10", "evaluation_metric": measure, "k": 10, **fields}
        for measure in ("recall", "mrr")
    ]
    config: Any = {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True}
    made = inline.client.evals.create(name="models", data_source_config=config, testing_criteria=criteria)
    runs = {}
    for model in (TINY, MINILM):
        source: Any = {
            "type": "retrieval",
            "vector_store_id": stores[model],
            "ranking_options": VECTORS_ALONE,
            "source": {"type": "file_content", "content": [{"item": item} for item in QUERIES]},
        }
        runs[model] = inline.client.evals.runs.create(made.id, name=model, data_source=source).id
    eventually(
        lambda: {run.status for run in inline.client.evals.runs.list(made.id)} == {"completed"}, 60, "both ended"
    )

    compared = inline.system.cli("evals", "compare", runs[TINY], runs[MINILM], "--slice-by", "item.language", "--json")

    assert compared.returncode == 0, compared.stderr
    rows = map(json.loads, compared.stdout.splitlines())
    means = {(row["criterion"], row["slice"]): row["second"] for row in rows if "slice" in row}
    assert means["mrr@10", None] == means["mrr@10", "de"] == means["mrr@10", "en"] == 1
    assert means["recall@10", None] == 1
