"""The re-ranking engine on a tiny cross-encoder: what is asked is checked, and scored as sentence-transformers does."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support import tiny_cross, tiny_roberta
from workers.engines.encoders.rerank import MAX_DOCUMENTS, BadRerankArgs, CrossModel, RerankEngine
from workers.engines.port import Answer, EngineBusy, EngineFault, Request

pytestmark = pytest.mark.timeout(180)  # importing torch takes 15 s on a quiet machine

QUERY = "Which bird cannot fly?"
TEXTS = ["The kiwi is a flightless bird.", "Lava flows.", "The tide follows the moon. " * 40, "été à la plage 東京", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_cross.write(tmp_path_factory.mktemp("cross"))


@pytest.fixture
async def engine(folder: Path) -> AsyncIterator[RerankEngine]:
    running = RerankEngine(str(folder), ["ranker"])
    await running.start()
    yield running
    await running.close()


def request(url: str = "/v1/rerank", **fields: Any) -> Request:
    return Request(url, {"model": "ranker", "query": QUERY, "documents": TEXTS, **fields}, "req")


def body_of(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer.body
    body: dict[str, Any] = msgspec.json.decode(answer.body)
    return body


def scores_of(answer: Answer) -> list[float]:
    results = body_of(answer)["results"]
    return [one["relevance_score"] for one in sorted(results, key=lambda one: one["index"])]


async def test_scores_are_those_of_sentence_transformers_best_first(engine: RerankEngine, folder: Path) -> None:
    from sentence_transformers import CrossEncoder

    reference = CrossEncoder(str(folder), device="cpu").predict([(QUERY, text) for text in TEXTS]).tolist()

    answer = await engine.answer(request())

    assert scores_of(answer) == pytest.approx(reference, abs=1e-5)
    assert len(set(scores_of(answer))) == len(TEXTS)
    shown = [one["relevance_score"] for one in body_of(answer)["results"]]
    assert shown == sorted(shown, reverse=True)
    assert all(0 <= score <= 1 for score in shown)


async def test_results_are_limited_to_top_n_and_include_documents_by_default(engine: RerankEngine) -> None:
    first = body_of(await engine.answer(request(top_n=2)))
    bare = body_of(await engine.answer(request(top_n=99, return_documents=False, documents=[{"text": "a"}, "b"])))

    assert [one["document"] for one in first["results"]] == [{"text": TEXTS[one["index"]]} for one in first["results"]]
    assert len(first["results"]) == 2
    assert sorted(bare["results"][0]) == ["index", "relevance_score"]
    assert len(bare["results"]) == 2
    assert (first["model"], first["id"][:7]) == ("ranker", "rerank-")


async def test_long_pairs_are_truncated_and_tokens_counted(engine: RerankEngine) -> None:
    long = "word " * 500

    answer = await engine.answer(request(query=long, documents=[long]))
    short = await engine.answer(request(query="hello", documents=["world", "hello world"]))

    assert answer.usage.input_tokens == 128
    assert body_of(short)["usage"] == {"prompt_tokens": 5 + 6, "total_tokens": 11}


def test_text_far_beyond_model_limit_is_not_tokenised(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CrossModel(str(folder), None, {"threads": 1})
    tokenizer, lengths = model._tokenizer, list[int]()

    def measured(queries: list[str], texts: list[str], **options: Any) -> Any:
        lengths.extend(map(len, [*queries, *texts]))
        return tokenizer(queries, texts, **options)

    whole = model.pairs_of([("quick brown " * 200, "lazy dog " * 200)])
    monkeypatch.setattr(model, "_tokenizer", measured)

    cut = model.pairs_of([("quick brown " * 20_000, "lazy dog " * 20_000)] * 3)

    assert cut == whole * 3
    assert max(lengths) <= model.longest * 32


async def test_a_score_does_not_depend_on_the_company(engine: RerankEngine) -> None:
    alone = [scores_of(await engine.answer(request(documents=[text])))[0] for text in TEXTS]

    answers = await asyncio.gather(*(engine.answer(request()) for _ in range(20)))

    for answer in answers:
        assert scores_of(answer) == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"query": None}, "query"),
        ({"query": "  "}, "query"),
        ({"query": ["a"]}, "query"),
        ({"documents": None}, "documents"),
        ({"documents": []}, "documents"),
        ({"documents": "a"}, "documents"),
        ({"documents": ["a"] * (MAX_DOCUMENTS + 1)}, "documents"),
        ({"documents": ["a", 1]}, "documents[1]"),
        ({"documents": [{"title": "a"}]}, "documents[0]"),
        ({"top_n": 0}, "top_n"),
        ({"top_n": "1"}, "top_n"),
        ({"top_n": True}, "top_n"),
        ({"return_documents": "yes"}, "return_documents"),
    ],
)
async def test_invalid_field_is_named_in_error(engine: RerankEngine, fields: dict[str, Any], param: str) -> None:
    answer = await engine.answer(request(**fields))

    assert answer.status == 400
    assert msgspec.json.decode(answer.body)["error"]["param"] == param


async def test_other_models_and_other_paths_are_refused(engine: RerankEngine) -> None:
    other = await engine.answer(request(model="other"))
    vectors = await engine.answer(request(url="/v1/embeddings"))

    assert (other.status, vectors.status) == (404, 400)


async def test_cancelled_request_leaves_the_rest_alone(engine: RerankEngine) -> None:
    long = asyncio.create_task(engine.answer(request(documents=["word " * 200] * 1000)))
    await asyncio.sleep(0.05)

    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long
    async with asyncio.timeout(10):
        assert (await engine.answer(request())).status == 200


async def test_closing_engine_rejects_waiting_requests_as_busy(engine: RerankEngine) -> None:
    tasks = [asyncio.create_task(engine.answer(request(documents=["word " * 200] * 500))) for _ in range(3)]
    await asyncio.sleep(0.05)

    await engine.close()

    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [EngineBusy] * 3


async def test_failed_forward_pass_is_a_fault(engine: RerankEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(CrossModel, "scores", out_of_memory)
        with pytest.raises(EngineFault, match="out of memory"):
            await engine.answer(request())

    assert (await engine.answer(request())).status == 200


@pytest.mark.parametrize("args", [{"dtyp": "x"}, {"dtype": "float16"}])
def test_unknown_arguments_are_named(folder: Path, args: dict[str, str]) -> None:
    with pytest.raises(BadRerankArgs, match=next(iter(args))):
        CrossModel(str(folder), None, args)


def test_max_length_argument_shortens_pairs(folder: Path) -> None:
    model = CrossModel(str(folder), None, {"max_length": 16, "threads": 1})

    assert [len(pair) for pair in model.pairs_of([("word " * 50, "word " * 50)])] == [16]


def test_a_model_that_counts_from_behind_its_padding_takes_fewer_tokens_than_it_has_positions(tmp_path: Path) -> None:
    model = CrossModel(str(tiny_roberta.write(tmp_path, context=64, ranks=True)), None, {"threads": 1})

    pairs = model.pairs_of([("def add " * 50, "return many " * 50)])

    assert [len(pair) for pair in pairs] == [64]
    assert [0 < score < 1 for score in model.scores(pairs)] == [True]


def test_a_classifier_of_several_labels_ranks_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadRerankArgs, match="one label"):
        CrossModel(str(tiny_cross.write(tmp_path, num_labels=3)), None, {})
