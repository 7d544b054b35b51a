"""No text is embedded twice for one project by one model, and nobody can tell but by the usage."""

import base64
import struct
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from sqlalchemy import select

from jobs.clock import now
from jobs.errors import DatabaseBusy
from jobs.inference import cache
from jobs.inference.tables import CacheEntry, CacheUse
from tests.unit.workers.middleware.caching.conftest import Counter
from workers.engines.port import Answer, EngineBusy, Request, Usage, refusal

URL = "/v1/embeddings"
WORDS = {"one": 2, "two": 3, "three": 5, "four": 7}


def counts_each(request: Request) -> Answer:
    """Make an engine that counts the tokens of each input, as ours does."""
    texts = request.body["input"]
    texts = [texts] if isinstance(texts, str) else texts
    lengths = tuple(WORDS[text] for text in texts)
    vectors = [struct.pack("<2f", WORDS[text], 0.1) for text in texts]
    as_base64 = request.body.get("encoding_format") == "base64"
    shown = [base64.b64encode(one).decode() if as_base64 else struct.unpack("<2f", one) for one in vectors]
    data = [{"object": "embedding", "index": n, "embedding": one} for n, one in enumerate(shown)]
    usage = {"prompt_tokens": sum(lengths), "total_tokens": sum(lengths)}
    body = {"object": "list", "data": data, "model": "m", "usage": usage}
    return Answer(200, msgspec.json.encode(body), Usage(sum(lengths)), lengths)


@pytest.fixture
def exact(counter: Counter) -> Counter:
    counter.says = counts_each
    return counter


def vectors(said: Any) -> list[Any]:
    assert [one["index"] for one in said["data"]] == list(range(len(said["data"])))
    return [one["embedding"] for one in said["data"]]


async def test_a_text_is_embedded_once_and_its_tokens_are_marked(exact: Counter) -> None:
    first = await exact.ask(URL, input="one")
    again = await exact.ask(URL, input="one")

    assert exact.prompts == ["one"]
    assert again["data"] == [{**first["data"][0], "embedding": pytest.approx(first["data"][0]["embedding"])}]
    assert (again["object"], again["model"]) == ("list", "m")
    assert (first["usage"], first["used"]) == ({"prompt_tokens": 2, "total_tokens": 2}, (2, 0))
    assert again["usage"] == {"prompt_tokens": 2, "total_tokens": 2, "prompt_tokens_details": {"cached_tokens": 2}}
    assert again["used"] == (2, 2)


async def test_only_missing_texts_are_embedded_and_all_texts_are_counted(exact: Counter) -> None:
    await exact.ask(URL, input=["two", "four"])
    mixed = await exact.ask(URL, input=["one", "two", "three", "four"])

    assert [request.body["input"] for request in exact.asked] == [["two", "four"], ["one", "three"]]
    assert [round(one[0]) for one in vectors(mixed)] == [2, 3, 5, 7]
    assert mixed["usage"]["prompt_tokens"] == 17
    assert mixed["usage"]["prompt_tokens_details"] == {"cached_tokens": 10}
    assert mixed["used"] == (17, 10)
    assert (await exact.ask(URL, input=["three", "one"]))["used"] == (7, 7)
    assert len(exact.asked) == 2


async def test_cached_vector_is_returned_in_either_encoding(exact: Counter) -> None:
    await exact.ask(URL, input="one", encoding_format="base64")
    await exact.ask(URL, input="two")
    floats = await exact.ask(URL, input=["one", "two"])
    packed = await exact.ask(URL, input=["one", "two"], encoding_format="base64")

    assert vectors(floats) == [[2.0, pytest.approx(0.1)], [3.0, pytest.approx(0.1)]]
    assert [struct.unpack("<2f", base64.b64decode(one)) for one in vectors(packed)] == [
        (2.0, pytest.approx(0.1)),
        (3.0, pytest.approx(0.1)),
    ]
    assert len(exact.asked) == 2


@pytest.mark.parametrize(
    "change", [{"tenant": "proj_2"}, {"dimensions": 4}, {"truncate_prompt_tokens": 5}, {"input": [104, 105]}]
)
async def test_project_and_vector_parameters_are_part_of_cache_key(counter: Counter, change: dict[str, Any]) -> None:
    await counter.ask(URL, input="hi")
    await counter.ask(URL, **({"input": "hi"} | change))

    assert len(counter.asked) == 2


async def test_other_weights_under_the_name_are_another_model(counter: Counter) -> None:
    await counter.ask(URL, input="hi")
    counter.weights = "second"
    await counter.ask(URL, input="hi")

    assert len(counter.asked) == 2


async def test_vector_without_token_count_is_not_cached(counter: Counter) -> None:
    data = [{"object": "embedding", "index": 0, "embedding": [1.0]}]
    counter.says = lambda _: Answer(200, msgspec.json.encode({"object": "list", "data": data, "model": "m"}))
    for _ in range(2):
        assert (await counter.ask(URL, input="hi"))["http"] == 200

    assert len(counter.asked) == 2


async def test_user_and_input_format_do_not_change_cache_key(counter: Counter) -> None:
    await counter.ask(URL, input="hi", user="anna", dimensions=None)
    await counter.ask(URL, input=["hi"], encoding_format="base64", cache=True)

    assert len(counter.asked) == 1


async def test_token_ids_are_cached_too(counter: Counter) -> None:
    for form in ([1, 2, 3], [[1, 2, 3]]):
        await counter.ask(URL, input=form)

    assert len(counter.asked) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"input": ""},
        {"input": []},
        {"input": ["a", ""]},
        {"input": ["a", [1]]},
        {"input": 7},
        {"input": None},
        {"input": ["a"] * 2049},
        {"input": "a", "encoding_format": "int8"},
        {"input": "a", "tenant": ""},
        {"input": "a", "cache": False},
    ],
)
async def test_uncacheable_request_reaches_engine_unchanged(counter: Counter, body: dict[str, Any]) -> None:
    counter.says = lambda _: refusal(400, "No.")
    for _ in range(2):
        assert (await counter.ask(URL, **body))["http"] == 400

    assert [request.body["input"] for request in counter.asked] == [body["input"]] * 2
    assert all("cache" not in request.body for request in counter.asked)


async def test_a_cache_that_is_neither_true_nor_false_is_refused(counter: Counter) -> None:
    said = await counter.ask(URL, input="a", cache={"ttl": 5})

    assert (said["http"], said["error"]["param"]) == (400, "cache")
    assert counter.asked == []


async def test_model_with_unknown_weights_is_not_cached(counter: Counter) -> None:
    counter.weights = "unknown"
    for _ in range(2):
        await counter.ask(URL, input="hi")

    assert len(counter.asked) == 2


async def test_it_can_be_turned_off(make_counter: Callable[..., Counter]) -> None:
    counter = make_counter(embedding_cache_seconds=0)
    await counter.cached.start()
    for _ in range(2):
        await counter.ask(URL, input="hi")

    assert len(counter.asked) == 2


async def test_combined_token_counts_allow_caching_of_single_inputs_only(counter: Counter) -> None:
    await counter.ask(URL, input=["a", "b"])
    await counter.ask(URL, input=["a", "b"])
    await counter.ask(URL, input="a")
    some = await counter.ask(URL, input=["a", "b"])

    assert counter.prompts == ["a\nb", "a\nb", "a", "b"]
    assert some["used"] == (2, 1)


@pytest.mark.parametrize("cacheable", [True, False])
async def test_uncacheable_input_reads_cache_without_writing(exact: Counter, cacheable: bool) -> None:
    await exact.ask(URL, input="one", cacheable=cacheable)
    await exact.ask(URL, input="one", cacheable=False)

    assert len(exact.asked) == (1 if cacheable else 2)


async def test_refusal_is_not_cached_and_refers_to_original_request(exact: Counter) -> None:
    await exact.ask(URL, input="two")

    def no_ones(request: Request) -> Answer:
        bad = "one" in request.body["input"]
        return refusal(400, f"input {request.body['input'].index('one')} is bad.") if bad else counts_each(request)

    exact.says = no_ones
    said = await exact.ask(URL, input=["two", "one"])

    assert said["error"]["message"] == "input 1 is bad."
    exact.says = counts_each
    assert (await exact.ask(URL, input="one"))["used"] == (2, 0)


async def test_engine_error_passes_through_cache(counter: Counter) -> None:
    counter.says = lambda _: EngineBusy("no")

    with pytest.raises(EngineBusy):
        await counter.ask(URL, input="one")


@pytest.mark.parametrize(
    "body",
    [
        b'{"data": []}',
        b'{"data": [{"index": 3, "embedding": [1]}]}',
        b'{"data": [{"index": 0, "embedding": "###"}]}',
        b'{"data": [{"index": 0, "embedding": "AAA="}]}',
        b'{"data": [{"index": 0, "embedding": []}]}',
        b'{"data": [{"index": 0, "embedding": [1e300]}]}',
        b'{"data": [{"index": 0, "embedding": ["a"]}]}',
        b'{"data": 1}',
        b"{}",
        b"nonsense",
    ],
)
async def test_answer_without_vectors_is_returned_and_not_cached(counter: Counter, body: bytes) -> None:
    counter.says = lambda _: Answer(200, body, Usage(1))
    request = Request(URL, {"model": "m", "input": "a"}, "req_1", tenant="proj_1")

    answers = []
    for _ in range(2):
        answers.append(await counter.cached.answer(request))
        counter.response_cache.flush()

    assert [answer.body for answer in answers] == [body] * 2
    assert len(counter.asked) == 2


async def test_invalid_answer_for_missing_texts_triggers_full_request(exact: Counter) -> None:
    await exact.ask(URL, input="two")
    exact.says = lambda request: (
        counts_each(request) if len(request.body["input"]) == 2 else Answer(200, b'{"data": []}', Usage(1))
    )

    said = await exact.ask(URL, input=["one", "two"])

    assert [round(one[0]) for one in vectors(said)] == [2, 3]
    assert said["used"] == (5, 0)


async def test_unavailable_database_leads_to_uncached_vectors(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> Any:
        raise DatabaseBusy

    for name in ("read", "write"):
        monkeypatch.setattr(counter.db, name, away)

    for _ in range(2):
        assert (await counter.ask(URL, input="one"))["http"] == 200
    assert len(counter.asked) == 2


async def test_clear_during_request_prevents_caching(counter: Counter) -> None:
    def cleared(_: Request) -> None:
        with counter.db.write() as session:
            cache.clear(session, "proj_1")

    counter.says = cleared
    await counter.ask(URL, input="one")
    await counter.ask(URL, input="one")

    assert len(counter.asked) == 2


async def test_used_entry_stays_and_unused_entry_expires(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    began, day = now(), 86_400
    for days, asked in ((0, 1), (5, 1), (10, 1), (18, 2)):
        at = began + days * day
        for place in ("workers.middleware.cache.now", "workers.middleware.response_cache.now"):
            monkeypatch.setattr(place, lambda at=at: at)
        await counter.ask(URL, input="one")
        assert len(counter.asked) == asked, days

    with counter.db.read() as session:
        assert session.scalars(select(CacheEntry.expires_at)).all() == [began + 25 * day]


async def test_entries_belong_to_their_job_and_uses_are_counted(exact: Counter) -> None:
    await exact.ask(URL, input=["one", "two"], job_id="batch_1")
    with exact.db.read() as session:
        owners = session.scalars(select(CacheEntry.job_id)).all()

    assert owners == ["batch_1", "batch_1"]
    with exact.db.read() as session:
        assert session.get_one(CacheUse, "embeddings").misses == 2
