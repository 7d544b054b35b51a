"""Who is served next by an encoder, on a fake one that records its forward passes. No test depends on time."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from jobs.fleet.models_file import EngineKind
from jobs.inference.interactive import LINE_PRIORITY, PRIORITY
from workers.engines.encoders import batching
from workers.engines.encoders.batching import BatchingEngine, Unacceptable
from workers.engines.encoders.embed import EmbedEngine, read
from workers.engines.encoders.encoder_pool import EncoderTask, Flow, InputPool, TaskSlice
from workers.engines.encoders.rerank import RerankEngine
from workers.engines.port import Answer, EngineFault, Request

PASS = 8  # tokens of a forward pass
SMALL = "two words"
LARGE = ["a text of five words"] * 40  # one of them in each pass


class Model:
    """Records its passes as the texts of each. While `gate` is closed a pass that has begun does not end."""

    batch_tokens = PASS

    def __init__(self) -> None:
        self.passes: list[list[str]] = []
        self.tokenised: list[list[str]] = []  # by call
        self.began = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def tokens_of(self, texts: Sequence[str]) -> list[list[str]]:
        self.tokenised.append(list(texts))
        if any("!tokenizer" in text for text in texts):
            raise ValueError("no such token")
        return [text.split() for text in texts]

    def forward(self, batch: Sequence[Sequence[str]]) -> list[str]:
        self.passes.append([" ".join(words) for words in batch])
        self.began.set()
        assert self.gate.wait(60)
        if any("!forward" in words for words in batch):
            raise ValueError("no such number")
        return self.passes[-1]


class Encoder(BatchingEngine[Model]):
    """Answers with the texts that it was asked."""

    url = "/v1/embeddings"
    kind = EngineKind.EMBED

    def _load(self, source: str) -> Model:
        return Model()

    def _read(self, model: Model, body: Mapping[str, Any]) -> tuple[list[str], list[int]]:
        return body["input"], [len(text) for text in body["input"]]

    def _tokenise(self, model: Model, slices: Sequence[TaskSlice]) -> list[list[Any]]:
        lists = iter(model.tokens_of([text for job, first, last in slices for text in job.request[first:last]]))
        return [[next(lists) for _ in range(first, last)] for _, first, last in slices]

    def _forward(self, model: Model, batch: list[Any]) -> list[str]:
        return model.forward(batch)

    def _write(self, job: EncoderTask) -> Answer:
        return Answer(200, msgspec.json.encode(job.results))

    @property
    def model(self) -> Model:
        assert self._model is not None
        return self._model


@pytest.fixture
async def engine() -> AsyncIterator[Encoder]:
    running = Encoder("", ["m"])
    await running.start()
    yield running
    running.model.gate.set()
    await running.close()


def ask(engine: Encoder, project: str, texts: Sequence[str] | str, priority: int = PRIORITY) -> "asyncio.Task[Answer]":
    """Ask in the name of `project`, whose name stands before each text."""
    inputs = [f"{project} {text}" for text in ([texts] if isinstance(texts, str) else texts)]
    request = Request("/v1/embeddings", {"model": "m", "input": inputs}, "r", priority, project)
    return asyncio.create_task(engine.answer(request))


async def first_pass(
    engine: Encoder, project: str, texts: Sequence[str] = LARGE, **facts: int
) -> "asyncio.Task[Answer]":
    """Ask, and return while the first forward pass runs, which does not end before `go_on`."""
    engine.model.gate.clear()
    task = ask(engine, project, texts, **facts)
    assert await asyncio.to_thread(engine.model.began.wait, 60)
    return task


def projects(engine: Encoder) -> str:
    """Return the first letter of the first text of each pass."""
    return "".join(batch[0][0] for batch in engine.model.passes)


async def test_a_small_request_waits_for_the_pass_that_runs_and_for_no_large_request(engine: Encoder) -> None:
    flood = [await first_pass(engine, "a"), *(ask(engine, "a", LARGE) for _ in range(2))]
    small = ask(engine, "b", SMALL)
    await asyncio.sleep(0)
    engine.model.gate.set()

    answers = await asyncio.gather(small, *flood)

    assert projects(engine)[:3] == "aba"
    assert [answer.status for answer in answers] == [200] * 4
    assert len(engine.model.passes) == 3 * len(LARGE) + 1


async def test_a_small_request_comes_before_its_own_projects_large_ones(engine: Encoder) -> None:
    large = await first_pass(engine, "a")
    small = ask(engine, "a", SMALL)
    await asyncio.sleep(0)
    engine.model.gate.set()
    await asyncio.gather(small, large)

    assert engine.model.passes[1] == [f"a {SMALL}"]


async def test_projects_with_large_requests_are_served_in_turn(engine: Encoder) -> None:
    await asyncio.gather(
        ask(engine, "a", LARGE), ask(engine, "a", LARGE), ask(engine, "b", LARGE), ask(engine, "c", LARGE)
    )

    assert {name: projects(engine)[:60].count(name) for name in "abc"} == {"a": 20, "b": 20, "c": 20}
    assert projects(engine)[-40:] == "a" * 40


async def test_a_project_that_was_served_alone_starts_without_a_debt(engine: Encoder) -> None:
    await ask(engine, "a", LARGE)
    await asyncio.gather(ask(engine, "a", LARGE), ask(engine, "b", LARGE))

    assert Counter(projects(engine)[40:80]) == {"a": 20, "b": 20}


async def test_small_requests_do_not_starve_large_request(engine: Encoder) -> None:
    small = [ask(engine, "a", "one two three four five") for _ in range(100)]
    large = ask(engine, "b", LARGE)
    await asyncio.gather(large, *small)

    assert projects(engine)[:80].count("b") == len(LARGE)


async def test_clients_come_before_batches_and_batches_are_served_in_turn(engine: Encoder) -> None:
    batches = [await first_pass(engine, "a", priority=-100), ask(engine, "b", LARGE, priority=0)]
    passed_on = ask(engine, "c", LARGE[:5], LINE_PRIORITY)
    client = ask(engine, "d", LARGE[:5])
    await asyncio.sleep(0)
    engine.model.gate.set()
    await asyncio.gather(client, passed_on, *batches)

    assert projects(engine)[:11] == "a" + "d" * 5 + "c" * 5
    assert Counter(projects(engine)[11:49]) == {"a": 19, "b": 19}


async def test_the_higher_priority_of_a_project_comes_first_in_its_own_batches(engine: Encoder) -> None:
    low, high = ask(engine, "a", LARGE, priority=1), ask(engine, "a", ["b text of five words"] * 40, priority=-1)
    await asyncio.gather(low, high)

    assert [batch[0][2] for batch in engine.model.passes] == ["b"] * 40 + ["a"] * 40


async def test_inputs_of_similar_length_share_pass_across_projects(engine: Encoder) -> None:
    await asyncio.gather(ask(engine, "a", "x"), ask(engine, "b", "x"), ask(engine, "c", "x y z"))

    assert engine.model.passes == [["a x", "b x"], ["c x y z"]]


async def test_between_two_passes_only_so_much_is_tokenised(engine: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "TOKENISED_CHARACTERS", 100)
    small = ask(engine, "b", SMALL)

    answers = await asyncio.gather(ask(engine, "a", LARGE), ask(engine, "a", ["a"] * 99), small)

    assert max(sum(map(len, texts)) for texts in engine.model.tokenised) <= 100 + len(f"a {LARGE[0]}")
    assert len(msgspec.json.decode(answers[0].body)) == len(LARGE)
    assert engine.model.passes[0] == [f"b {SMALL}"], "a large request that is tokenised in part is not computed"


async def test_tokens_that_wait_are_bounded_for_each_project(engine: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "POOLED_PASSES", 2)
    tokenised = []

    def forward(self: Model, batch: Sequence[Sequence[str]]) -> list[str]:
        self.passes.append([" ".join(words) for words in batch])
        done = Counter(text[0] for texts in self.passes for text in texts)
        tokenised.append(Counter(text[0] for texts in self.tokenised for text in texts) - done)
        return self.passes[-1]

    monkeypatch.setattr(Model, "forward", forward)
    await asyncio.gather(*(ask(engine, name, LARGE) for name in "aaaaabbbbb"))

    most = len(LARGE) + 2 * PASS / 6  # the request with which the bound is reached, and what is below it
    assert max(max(waiting.values(), default=0) for waiting in tokenised) <= most
    assert len(engine.model.passes) == 10 * len(LARGE)


async def test_cancelled_requests_are_neither_tokenised_nor_computed(
    engine: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "POOLED_PASSES", 2)
    flood = [await first_pass(engine, "a"), *(ask(engine, "a", LARGE) for _ in range(3))]
    await asyncio.sleep(0)
    for task in flood:
        task.cancel()
    await asyncio.gather(*flood, return_exceptions=True)
    engine.model.gate.set()
    await ask(engine, "b", LARGE)

    assert projects(engine) == "a" + "b" * len(LARGE)
    assert sum(len(texts) for texts in engine.model.tokenised) == 2 * len(LARGE)
    assert not engine._backlog


async def test_a_project_that_cancels_is_served_in_its_turn_afterwards(engine: Encoder) -> None:
    cancelled = await first_pass(engine, "b")
    others = ask(engine, "a", LARGE)
    await asyncio.sleep(0)
    cancelled.cancel()
    again = ask(engine, "b", LARGE)
    await asyncio.sleep(0)
    engine.model.gate.set()
    await asyncio.gather(others, again)

    assert projects(engine)[1:6] == "aabab", "the second pass of a is for the first one of b"


@pytest.mark.parametrize("where", ["tokenizer", "forward"])
async def test_error_fails_only_its_own_request(engine: Encoder, where: str) -> None:
    asked = [ask(engine, name, text) for name, text in (("a", "x"), ("b", f"!{where}"), ("c", "x"))]

    one, broken, other = await asyncio.gather(*asked, return_exceptions=True)

    assert isinstance(broken, EngineFault)
    assert [answer.status for answer in (one, other) if isinstance(answer, Answer)] == [200, 200]


class Ranker(RerankEngine):
    """The re-ranking engine on a fake model."""

    def __init__(self) -> None:
        super().__init__("", ["m"])
        self.calls: list[int] = []

    def _load(self, source: str) -> Any:
        def pairs_of(pairs: Sequence[tuple[str, str]]) -> list[list[str]]:
            self.calls.append(len(pairs))
            return [[*query.split(), *text.split()] for query, text in pairs]

        return SimpleNamespace(
            batch_tokens=PASS, characters=20, pairs_of=pairs_of, scores=lambda batch: [0.5 for _ in batch]
        )


async def test_many_documents_are_tokenised_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "TOKENISED_CHARACTERS", 100)
    ranker = Ranker()
    body = {"model": "m", "query": "which one is it", "documents": ["this one"] * 30}

    answer = await ranker.answer(Request("/v1/rerank", body, "r", PRIORITY, "a"))
    await ranker.close()

    assert [one["index"] for one in msgspec.json.decode(answer.body)["results"]] == list(range(30))
    assert ranker.calls == [5] * 6, "each of 23 characters"


FACTS: Any = SimpleNamespace(
    dimensions=2, vocabulary=9, longest=4, prompts=SimpleNamespace(of=lambda _: "", types=()), min_tokens=lambda _: 3
)


def test_a_text_of_more_characters_than_any_text_that_fits_is_refused_without_a_look_at_its_tokens() -> None:
    with pytest.raises(Unacceptable, match=r"maximum context length is 4 tokens.*input 1 has 129") as caught:
        read({"input": ["x" * 128, "x" * 129]}, FACTS)

    assert msgspec.json.decode(caught.value.answer.body)["error"]["code"] == "context_length_exceeded"


def test_text_over_character_limit_is_truncated_on_request() -> None:
    asked = read({"input": ["x" * 128, "x" * 129], "truncate": True}, FACTS)

    assert asked.inputs == ["x" * 128] * 2
    assert asked.cut == {1}


async def test_pool_discards_computed_inputs_queued_behind_waiting_input() -> None:
    pool, answer = InputPool(), asyncio.get_running_loop().create_future()
    pool.add(EncoderTask(None, [4], Flow(1, False, "batches"), 0, answer), 0, "x" * 100)

    for _ in range(50):  # clients keep the encoder busy, and short inputs of the batch fill their passes
        for rank, project in ((0, "client"), (1, "batches"), (1, "batches"), (1, "batches")):
            pool.add(EncoderTask(None, [4], Flow(rank, False, project), 0, answer), 0, "x" * 8)
        assert len(pool.pick(32)) == 4

    assert len(pool) == 1
    assert sum(map(len, pool._flows.values())) <= 4
    assert [len(entry[4]) for entry in pool.pick(32)] == [100]
    assert pool.pick(32) == []
    assert not pool._flows
    assert not pool._computed


@pytest.mark.parametrize(
    ("engine", "url", "body"),
    [
        (EmbedEngine("nowhere", ["m"]), "/v1/embeddings", {"input": "x", "input_type": "query", "truncate": True}),
        (RerankEngine("nowhere", ["m"]), "/v1/rerank", {"query": "x", "documents": ["y"], "top_n": 1}),
    ],
)
async def test_an_unknown_field_is_refused_before_the_model_is_loaded(
    engine: BatchingEngine[Any], url: str, body: dict[str, Any]
) -> None:
    refused = await engine.answer(Request(url, {"model": "m", **body, "foo": 1}, "req_1"))

    error = msgspec.json.decode(refused.body)["error"]
    assert (refused.status, error["param"], error["code"]) == (400, "foo", "unknown_parameter")
