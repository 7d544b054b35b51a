"""Runs that search vector stores, ask for likelihoods of texts, or compare texts by the embeddings of their tokens."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.db.engine import Database
from jobs.evals import runs
from jobs.retrieval.tables import VectorStore, VectorStoreFile
from tests.support.eval_client import World, evaluating
from tests.support.fake_engine import DIMENSIONS, vector_of
from tests.support.inline_deployment import MODEL
from workers.vectors.base import Store, VectorEntry

TEXTS = {
    "kiwi": "The kiwi is a flightless bird of the forest.",
    "emu": "The emu is a tall bird of the plains.",
    "lava": "Lava flows from a volcano into the sea.",
    "tide": "The tide of the sea follows the moon.",
}
#: The store's model is one of this deployment's own, where a worker of the fake engine has it.
MODELS_FILE = f"""
models:
  {MODEL}: {{source: {{packaged: all-minilm-l6-v2}}, engine: embed, queue: gpu.generate}}
"""


def ranking(metric: str, k: int, **changes: Any) -> dict[str, Any]:
    fields = {"input": "{{ sample.output_json.files }}", "reference": "{{ item.relevant }}"}
    return {"type": "ranking", "name": f"{metric}@{k}", "evaluation_metric": metric, "k": k, **fields, **changes}


@pytest.fixture
def make_world(db: Database, tmp_path: Path) -> Iterator[Callable[..., World]]:
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(
            evaluating(db, tmp_path, schema={"type": "object"}, vectors_url="memory:", **settings)
        )


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()


def store_of(world: World) -> str:
    """Return a store with one chunk of each text, written as a worker leaves them."""
    store_id = world.client.vector_stores.create(extra_body={"embedding_model": MODEL}).id
    fill(world, store_id, TEXTS)
    return store_id


def fill(world: World, index_id: str, texts: Mapping[str, str]) -> None:
    """Write a file with one chunk of each text to an index."""
    with world.inline.db.write() as session:
        index = session.get_one(VectorStore, index_id)
        index.dimensions, project_id = DIMENSIONS, index.project_id
        for name in texts:
            row = VectorStoreFile(
                store_id=index_id, id=name, project_id=project_id, filename=f"{name}.txt", status="completed",
                created_at=1.0, attributes=None, chunking={}, job_id="ing_1", line=0, version=f"vsd_{name}",
                document=f"vsd_{name}.1", entries=1,
            )  # fmt: skip
            session.add(row)
    entries = [
        VectorEntry(
            f"vsd_{name}.1", 0, text, sha256(text.encode()).hexdigest(),
            np.array(vector_of(text, DIMENSIONS), "<f4"), {"start": 0, "end": len(text), "tokens": 1},
        )
        for name, text in texts.items()
    ]  # fmt: skip
    world.inline.gpu.vectors.write(Store(index_id, project_id, MODEL, DIMENSIONS), entries)


def test_results_of_a_store_are_measured(world: World) -> None:
    contexts = {
        "type": "faithfulness",
        "name": "grounded",
        "input": "{{ item.query }}",
        "context": "{{ sample.output_json.contexts }}",
    }
    content = [
        {"item": {"query": TEXTS["kiwi"], "relevant": ["kiwi"]}},
        {"item": {"query": TEXTS["lava"], "relevant": {"lava": 2, "tide": 1, "elsewhere": 1}}},
        {"item": {"query": TEXTS["emu"], "relevant": ["nowhere"]}},
        {"item": {"query": " ", "relevant": ["kiwi"]}},
    ]
    run = world.run(
        world.eval(ranking("recall", 1), ranking("mrr", 4), contexts),
        content,
        kind="retrieval",
        vector_store_id=store_of(world),
        max_num_results=4,
    )

    done = world.ended(run)

    counts = done.result_counts
    assert (done.status, done.model) == ("completed", MODEL)
    assert (counts.total, counts.passed, counts.failed, counts.errored) == (4, 1, 2, 1)
    recall, mrr, grounded = (result.to_dict() for result in done.per_testing_criteria_results)
    assert recall["mean_score"] == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert (mrr["passed"], mrr["failed"], mrr["errored"]) == (2, 1, 1)
    assert mrr["mean_score"] == pytest.approx(2 / 3)
    assert grounded["mean_score"] == 1.0
    first, second, _, blank = world.output(run)
    assert [result.score for result in first.results] == [1.0, 1.0, 1.0]
    assert second.results[0].score == pytest.approx(1 / 3)
    assert first.sample.input[0].content == TEXTS["kiwi"]
    assert first.sample.output[0].content.startswith(TEXTS["kiwi"])
    assert (blank.status, blank.sample.error.message) == (
        "error",
        "A query has 1 to 4096 characters, not all of them spaces.",
    )


def test_results_of_a_run_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "MAX_RESULTS", 20)
    content = [{"item": {"query": "birds", "relevant": ["kiwi"]}}] * 3
    run = world.run(world.eval(ranking("map", 3)), content, kind="retrieval", vector_store_id=store_of(world))

    done = world.ended(run)

    assert (done.status, done.error.code, world.asked) == ("failed", "too_many_results", [])


@pytest.mark.verify
def test_run_over_a_removed_store_has_errors_and_no_scores(world: World) -> None:
    store_id = store_of(world)
    content = [{"item": {"query": "birds", "relevant": ["kiwi"]}}]
    run = world.run(world.eval(ranking("map", 3)), content, kind="retrieval", vector_store_id=store_id)
    world.client.vector_stores.delete(store_id)

    done = world.ended(run)

    assert (done.status, done.result_counts.errored) == ("completed", 1)
    assert done.per_testing_criteria_results[0].to_dict()["mean_score"] is None
    assert "No vector store found" in world.output(run)[0].sample.error.message


def test_perplexity_is_that_of_all_tokens_together(world: World) -> None:
    low = {"type": "perplexity", "name": "likely", "max_perplexity": math.exp(0.35)}
    content = [{"item": {"text": "a bb ccc dddd"}}, {"item": {"text": "a eeeeeeee"}}, {"item": {"text": "a"}}]
    run = world.run(world.eval(low), content, kind="perplexity", model=MODEL)

    done = world.ended(run)

    counts = done.result_counts
    assert (done.status, counts.passed, counts.failed, counts.errored) == ("completed", 1, 1, 1)
    (result,) = (result.to_dict() for result in done.per_testing_criteria_results)
    assert result["perplexity"] == pytest.approx(math.exp((0.2 + 0.3 + 0.4 + 0.8) / 4))
    assert result["mean_score"] == pytest.approx(-(0.3 + 0.8) / 2)
    (usage,) = done.per_model_usage
    assert (usage.run_model_name, usage.prompt_tokens) == (MODEL, 6)
    first, _, single = world.output(run)
    details = first.results[0].sample
    assert (details["tokens"], details["perplexity"]) == (3, pytest.approx(math.exp(0.3)))
    assert "two tokens" in single.sample.error.message


def test_bertscore_names_its_model_and_layer(make_world: Callable[..., World], tmp_path: Path) -> None:
    models_file = tmp_path / "models.yaml"
    models_file.write_text(MODELS_FILE)
    world = make_world(models_file=str(models_file))
    grader = {
        "type": "text_similarity",
        "name": "alike",
        "input": "{{ sample.output_text }}",
        "reference": "{{ item.answer }}",
        "evaluation_metric": "bertscore",
        "pass_threshold": 0.9,
    }
    content = [
        {"item": {"answer": "one two"}, "sample": {"output_text": "one two"}},
        {"item": {"answer": "one three four"}, "sample": {"output_text": "one"}},
    ]

    run = world.run(world.eval(grader), content, kind="jsonl")
    done = world.ended(run)

    assert (done.status, done.result_counts.passed, done.result_counts.failed) == ("completed", 1, 1)
    assert [usage.run_model_name for usage in done.per_model_usage] == [MODEL]
    second = world.output(run)[1].results[0]
    assert second.score == pytest.approx(2 * (1 / 3) / (1 + 1 / 3))
    assert second.sample == {"model": MODEL, "layer": 1, "precision": 1.0, "recall": pytest.approx(1 / 3)}
