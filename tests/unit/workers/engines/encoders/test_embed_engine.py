"""The embedding engine on the packaged MiniLM, and its pool alone."""

import asyncio
import base64
import itertools
import math
import random
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from jobs.platform import memory
from workers.engines.encoders import batching, embed_model
from workers.engines.encoders.batching import Unacceptable, padded_width
from workers.engines.encoders.embed import MAX_INPUTS, EmbedEngine, EmbedInput, check_lengths
from workers.engines.encoders.encoder_pool import EncoderTask, InputPool, flow_of
from workers.engines.model_folders import MINILM, materialise
from workers.engines.port import Answer, EngineBusy, EngineDead, EngineFault, Request

pytestmark = pytest.mark.timeout(180)  # importing torch takes 15 s on a quiet machine

MODEL = "mini"
LONG = "word " * 300  # MiniLM takes 256 tokens


@pytest.fixture
async def engine(tmp_path: Any) -> AsyncIterator[EmbedEngine]:
    running = EmbedEngine(lambda: str(materialise(MINILM, tmp_path)), [MODEL])
    await running.start()
    yield running
    await running.close()


def request(value: Any, url: str = "/v1/embeddings", **more: Any) -> Request:
    return Request(url, {"model": MODEL, "input": value, **more}, "req")


def body_of(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer.body
    body: dict[str, Any] = msgspec.json.decode(answer.body)
    return body


def vectors_of(answer: Answer) -> list[list[float]]:
    return [item["embedding"] for item in body_of(answer)["data"]]


def error_of(answer: Answer) -> dict[str, Any]:
    assert answer.status == 400
    error: dict[str, Any] = msgspec.json.decode(answer.body)["error"]
    return error


def cosine(one: list[float], two: list[float]) -> float:
    return sum(a * b for a, b in zip(one, two, strict=True))


async def test_vectors_are_those_of_sentence_transformers(engine: EmbedEngine, tmp_path: Any) -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["A cat sat on the mat.", "Interest rates rose again.", "word " * 200, "ok"]
    reference = SentenceTransformer(str(materialise(MINILM, tmp_path)), device="cpu").encode(texts)

    vectors = vectors_of(await engine.answer(request(texts)))

    assert [cosine(ours, theirs.tolist()) for ours, theirs in zip(vectors, reference, strict=True)] == pytest.approx(
        [1.0] * 4, abs=3e-4
    )


async def test_meaning_is_nearer_than_words(engine: EmbedEngine) -> None:
    texts = ["How do I reset my password?", "I forgot my login credentials", "How do I reset my router?"]

    asked, same, other = vectors_of(await engine.answer(request(texts)))

    assert len(asked) == 384
    assert math.hypot(*asked) == pytest.approx(1, abs=1e-6)
    assert cosine(asked, same) > cosine(asked, other)


async def test_usage_counts_the_tokens_that_the_model_saw(engine: EmbedEngine) -> None:
    answer = await engine.answer(request(["hello world", "hello"]))

    assert answer.usage.input_tokens == (2 + 2) + (1 + 2)  # with [CLS] and [SEP]
    assert body_of(answer)["usage"] == {"prompt_tokens": 7, "total_tokens": 7}


async def test_memory_is_trimmed_after_threshold_of_computed_tokens(
    engine: EmbedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    trimmed = threading.Event()
    monkeypatch.setattr(memory, "trim", trimmed.set)
    monkeypatch.setattr(batching, "TRIMMED_TOKENS", 6)
    monkeypatch.setattr(engine, "_untrimmed_until", 0.0)
    monkeypatch.setattr(engine, "_untrimmed", 0)

    await engine.answer(request("hello"))  # of three tokens
    assert not await asyncio.to_thread(trimmed.wait, 0.2)
    await engine.answer(request("hello"))
    assert await asyncio.to_thread(trimmed.wait, 10)


async def test_giving_back_takes_a_small_share_of_the_time(
    engine: EmbedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    trims: list[float] = []

    def trim() -> None:
        trims.append(clock[0])
        clock[0] += 1.0

    monkeypatch.setattr(memory, "trim", trim)
    monkeypatch.setattr(batching, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(engine, "_untrimmed_until", 0.0)
    monkeypatch.setattr(engine, "_untrimmed", 0)

    for passed, tokens in (0, 4095), (1, 1), (49, 8000), (1, 96), (49, 0), (2, 4095), (9, 1):  # a trim takes a second
        clock[0] += passed
        await engine._trim([(tokens, 0, None, 0, None)])  # type: ignore[list-item]

    assert trims == [1001.0, 1052.0, 1113.0]


async def test_tokens_are_counted_for_each_input(engine: EmbedEngine) -> None:
    answer = await engine.answer(request(["one two three", "one"]))

    assert answer.tokens == (5, 3)
    assert answer.usage.input_tokens == 8


async def test_token_ids_give_same_vector_as_their_text(engine: EmbedEngine) -> None:
    hello_world = [7592, 2088]

    text = await engine.answer(request("hello world"))
    ids = await engine.answer(request(hello_world))
    many = await engine.answer(request([hello_world, [7592]]))

    assert vectors_of(ids)[0] == pytest.approx(vectors_of(text)[0], abs=1e-3)
    assert ids.usage == text.usage
    assert len(vectors_of(many)) == 2


async def test_base64_is_little_endian_float32_of_the_same_vector(engine: EmbedEngine) -> None:
    floats = vectors_of(await engine.answer(request("x", encoding_format="float")))[0]
    packed = body_of(await engine.answer(request("x", encoding_format="base64")))["data"][0]["embedding"]

    assert struct.unpack("<384f", base64.b64decode(packed)) == pytest.approx(floats, abs=1e-6)


async def test_an_encoding_of_null_is_floats(engine: EmbedEngine) -> None:
    floats = vectors_of(await engine.answer(request("x", encoding_format="float")))

    assert vectors_of(await engine.answer(request("x", encoding_format=None))) == floats
    assert vectors_of(await engine.answer(request("x"))) == floats


async def test_reduced_dimensions_are_leading_dimensions_normalised(engine: EmbedEngine) -> None:
    whole = vectors_of(await engine.answer(request("x")))[0]
    short = vectors_of(await engine.answer(request("x", dimensions=64)))[0]

    norm = math.hypot(*whole[:64])
    assert short == pytest.approx([value / norm for value in whole[:64]], abs=1e-6)


async def test_result_does_not_depend_on_the_company_in_the_batch(engine: EmbedEngine) -> None:
    random.seed(7)
    texts = [" ".join(random.choices(["red", "blue", "green", "sea", "sky"], k=n % 60 + 1)) for n in range(150)]
    alone = [vectors_of(await engine.answer(request(text)))[0] for text in texts[:5]]

    answers = await asyncio.gather(*(engine.answer(request(text)) for text in texts))

    for one, other in zip(alone, answers, strict=False):
        assert cosine(one, vectors_of(other)[0]) == pytest.approx(1, abs=5e-4)


WRONG = {
    "no input": ({"value": None}, "input must be a non-empty string or array", None),
    "empty string": ({"value": ""}, "input cannot be an empty string", None),
    "empty string among others": ({"value": ["a", ""]}, "input cannot be an empty string", None),
    "empty array": ({"value": []}, "input must be a non-empty string or array", None),
    "empty token array": ({"value": [[1], []]}, "input cannot be an empty array", None),
    "mixed": ({"value": ["a", [1]]}, "input must be a string, or an array", None),
    "object": ({"value": {"a": 1}}, "input must be a non-empty string or array", None),
    "numbers": ({"value": [1.5]}, "input must be a string, or an array", None),
    "unknown token": ({"value": [30522]}, "token ids of this model are integers from 0 to 30521", None),
    "negative token": ({"value": [5, -1]}, "token ids of this model", None),
    "true as a token": ({"value": [5, True]}, "token ids of this model", None),
    "too many": ({"value": ["a"] * (MAX_INPUTS + 1)}, "at most 2048 items; it has 2049", None),
    "too long": ({"value": ["a", LONG]}, "maximum context length is 256 tokens", "context_length_exceeded"),
    "too long as tokens": ({"value": [5] * 255}, "you requested 257 tokens", "context_length_exceeded"),
    "odd encoding": ({"value": "a", "encoding_format": "hex"}, "encoding_format must be", None),
    "a list as encoding": ({"value": "a", "encoding_format": []}, "encoding_format must be", None),
    "an object as encoding": ({"value": "a", "encoding_format": {}}, "encoding_format must be", None),
    "too many dimensions": ({"value": "a", "dimensions": 385}, "dimensions must be an integer from 1 to 384", None),
    "no dimensions": ({"value": "a", "dimensions": 0}, "dimensions must be", None),
    "odd dimensions": ({"value": "a", "dimensions": "64"}, "dimensions must be", None),
}


async def test_wrong_requests_are_answered_with_400_and_the_reason(engine: EmbedEngine) -> None:
    for case, (fields, words, code) in WRONG.items():
        error = error_of(await engine.answer(request(**fields)))

        assert words in error["message"], case
        assert error["code"] == code, case


async def test_most_inputs_that_are_allowed_are_answered(engine: EmbedEngine) -> None:
    answer = await engine.answer(request(["a"] * MAX_INPUTS, encoding_format="base64"))

    assert [item["index"] for item in body_of(answer)["data"]] == list(range(MAX_INPUTS))


async def test_other_models_and_other_paths_are_refused(engine: EmbedEngine) -> None:
    other = await engine.answer(Request("/v1/embeddings", {"model": "other", "input": "a"}, "req"))
    chat = await engine.answer(request("a", url="/v1/chat/completions"))

    assert (other.status, chat.status) == (404, 400)


@pytest.mark.verify  # it races a clock
async def test_loop_stays_free_while_a_batch_runs(engine: EmbedEngine) -> None:
    task = asyncio.create_task(engine.answer(request(["word " * 200] * 64)))
    waits = []

    while not task.done():
        before = asyncio.get_running_loop().time()
        await asyncio.sleep(0.005)
        waits.append(asyncio.get_running_loop().time() - before)

    assert len(waits) > 5
    assert sorted(waits)[len(waits) // 2] < 0.2


async def test_cancelled_request_leaves_the_rest_alone(engine: EmbedEngine) -> None:
    long = asyncio.create_task(engine.answer(request(["word " * 200] * 500)))
    await asyncio.sleep(0.05)

    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long
    async with asyncio.timeout(5):
        assert (await engine.answer(request("next"))).status == 200


async def test_closing_engine_rejects_waiting_requests_as_busy(engine: EmbedEngine) -> None:
    tasks = [asyncio.create_task(engine.answer(request(["word " * 200] * 100))) for _ in range(3)]
    await asyncio.sleep(0.05)

    await engine.close()

    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [EngineBusy] * 3


async def test_closed_engine_can_be_restarted(engine: EmbedEngine) -> None:
    await engine.close()
    await engine.close()
    await engine.start()
    await engine.start()

    assert (await engine.answer(request("a"))).status == 200


async def test_failed_forward_pass_is_a_fault_of_its_batch_only(
    engine: EmbedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = embed_model.SentenceModel.embed

    def out_of_memory(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(embed_model.SentenceModel, "embed", out_of_memory)
    with pytest.raises(EngineFault, match="out of memory"):
        await engine.answer(request("a"))
    monkeypatch.setattr(embed_model.SentenceModel, "embed", real)

    assert (await engine.answer(request("a"))).status == 200


async def test_tokenizer_that_breaks_is_a_fault_and_the_next_request_is_answered(
    engine: EmbedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no such vocabulary")

    with monkeypatch.context() as patch:
        patch.setattr(embed_model.SentenceModel, "tokens_of", broken)
        with pytest.raises(EngineFault, match="The tokenizer failed: no such vocabulary"):
            await engine.answer(request("a"))

    assert (await engine.answer(request("a"))).status == 200


async def test_text_without_tokens_is_refused_and_its_neighbours_are_answered(
    engine: EmbedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokenizers without special tokens make nothing of blanks."""
    real = embed_model.SentenceModel.tokens_of

    def nothing_of_blanks(model: Any, texts: list[str]) -> list[list[int]]:
        return [ids if text.strip() else [] for text, ids in zip(texts, real(model, texts), strict=True)]

    monkeypatch.setattr(embed_model.SentenceModel, "tokens_of", nothing_of_blanks)
    blank, good = await asyncio.gather(engine.answer(request(["a", " "])), engine.answer(request("a")))

    assert error_of(blank)["param"] == "input"
    assert "the model's tokenizer makes nothing of input 1" in error_of(blank)["message"]
    assert len(vectors_of(good)) == 1


async def test_unexpected_error_kills_engine_until_restart(
    engine: EmbedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Answer:
        raise KeyError("unforeseen")

    with monkeypatch.context() as patch:
        patch.setattr(EmbedEngine, "_write", broken)
        async with asyncio.timeout(30):
            first = await asyncio.gather(*(engine.answer(request("a")) for _ in range(3)), return_exceptions=True)
            later = await asyncio.gather(engine.answer(request("a")), return_exceptions=True)
    await engine.start()

    assert [type(outcome) for outcome in (*first, *later)] == [EngineDead] * 4
    assert (await engine.answer(request("a"))).status == 200


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (
            {"dtyp": "float32"},
            "dtyp: not among batch_tokens, dtype, passage_prompt, prompt, query_prompt, runtime, threads",
        ),
        ({"dtype": "float16"}, "dtype 'float16': not among auto, float32, bfloat16"),
        ({"runtime": "tensorrt"}, "runtime 'tensorrt': not among auto, torch, onnx"),
        ({"runtime": "onnx", "dtype": "bfloat16"}, "dtype is torch's"),
        ({"query_prompt": ["query: "]}, "query_prompt must be text"),
        ({"query_prompt": "word " * 260}, "the prompt 'word .*' is too long: with it the shortest text has 263 tokens"),
    ],
)
async def test_unknown_engine_argument_is_named(tmp_path: Any, args: dict[str, str], told: str) -> None:
    engine = EmbedEngine(str(materialise(MINILM, tmp_path)), [MODEL], args=args)

    with pytest.raises(embed_model.BadEmbedArgs, match=told):
        await engine.start()


async def test_prompt_is_put_before_every_text(engine: EmbedEngine, tmp_path: Any) -> None:
    prompted = EmbedEngine(
        str(materialise(MINILM, tmp_path)), [MODEL], args={"prompt": "query: ", "dtype": "float32", "threads": 1}
    )
    plain = await engine.answer(request("query: cats"))

    answer = await prompted.answer(request("cats"))
    await prompted.close()

    assert answer.usage == plain.usage
    assert cosine(vectors_of(answer)[0], vectors_of(plain)[0]) == pytest.approx(1, abs=5e-4)


@pytest.fixture
async def typed(tmp_path: Any) -> AsyncIterator[EmbedEngine]:
    args = {"query_prompt": "query: ", "passage_prompt": "passage: ", "dtype": "float32", "threads": 1}
    running = EmbedEngine(str(materialise(MINILM, tmp_path)), [MODEL], args=args)
    await running.start()
    yield running
    await running.close()


BEFORE = {
    "query": "query: ", "search_query": "query: ", "passage": "passage: ", "document": "passage: ", None: "", "raw": "",
}  # fmt: skip


async def test_input_type_says_which_prompt_is_put_before(typed: EmbedEngine) -> None:
    for kind, prompt in BEFORE.items():
        [expected, bare] = vectors_of(await typed.answer(request([f"{prompt}cats", "cats"])))
        [found] = vectors_of(await typed.answer(request("cats", input_type=kind)))

        assert cosine(found, expected) == pytest.approx(1, abs=1e-5), kind
        assert (cosine(found, bare) > 0.999) is (not prompt), kind


async def test_prompt_stands_before_token_ids_too(typed: EmbedEngine) -> None:
    text = await typed.answer(request("hello world", input_type="query"))
    ids = await typed.answer(request([7592, 2088], input_type="query"))

    assert cosine(vectors_of(text)[0], vectors_of(ids)[0]) == pytest.approx(1, abs=1e-5)
    assert text.usage == ids.usage


async def test_unknown_input_type_is_refused_with_those_there_are(typed: EmbedEngine) -> None:
    for odd in ("poem", "", 7, ["query"]):
        error = error_of(await typed.answer(request("a", input_type=odd)))

        assert error["param"] == "input_type"
        assert "query, search_query, document, passage" in error["message"]


async def test_models_own_prompts_are_used_where_none_are_given(tmp_path: Any) -> None:
    folder = tmp_path / "model"
    shutil.copytree(materialise(MINILM, tmp_path), folder)
    own = {"prompts": {"query": "query: ", "document": "", "clustering": "sort: "}}
    (folder / "config_sentence_transformers.json").write_bytes(msgspec.json.encode(own))
    engine = EmbedEngine(str(folder), [MODEL], args={"dtype": "float32", "threads": 1})
    plain = vectors_of(await engine.answer(request(["query: a", "a", "sort: a"])))

    found = [
        vectors_of(await engine.answer(request("a", input_type=kind)))[0] for kind in ("query", "passage", "clustering")
    ]
    await engine.close()

    assert [cosine(*pair) for pair in zip(found, plain, strict=True)] == pytest.approx([1, 1, 1], abs=1e-5)


TRUNCATED: dict[str, tuple[Any, dict[str, Any], int, list[int]]] = {
    "texts": (["a", LONG], {"truncate": True}, 3 + 256, [1]),
    "token ids": ([[5] * 300, [5]], {"truncate": True}, 256 + 3, [0]),
    "as vLLM asks": (LONG, {"truncate_prompt_tokens": -1}, 256, [0]),
    "to a length": ([LONG, "a"], {"truncate_prompt_tokens": 10}, 10 + 3, [0]),
    "to a length, both": (LONG, {"truncate": True, "truncate_prompt_tokens": 10}, 10, [0]),
    "more characters than are read": (["b", "a" + " " * 9000], {"truncate": True}, 6, [1]),
    "nothing too long": (["a", "b"], {"truncate": True}, 6, []),
    "no length": ("a", {"truncate": True, "truncate_prompt_tokens": None}, 3, []),
}


async def test_too_long_input_is_truncated_on_request(engine: EmbedEngine) -> None:
    for case, (inputs, fields, tokens, cut) in TRUNCATED.items():
        answer = await engine.answer(request(inputs, **fields))

        assert body_of(answer)["truncated"] == cut, case
        assert answer.usage.input_tokens == tokens, case


async def test_cut_input_is_its_beginning_between_the_special_tokens(engine: EmbedEngine) -> None:
    cut = vectors_of(await engine.answer(request("red green blue sea", truncate_prompt_tokens=4)))[0]
    beginning = vectors_of(await engine.answer(request("red green")))[0]

    assert cosine(cut, beginning) == pytest.approx(1, abs=5e-4)


ODD: list[dict[str, Any]] = [
    {"truncate": "yes"}, {"truncate": 1}, {"truncate_prompt_tokens": 2}, {"truncate_prompt_tokens": 257},
    {"truncate_prompt_tokens": -2}, {"truncate_prompt_tokens": True}, {"truncate_prompt_tokens": "9"},
    {"truncate_prompt_tokens": 5, "input_type": "poem"},
]  # fmt: skip


async def test_odd_wishes_for_truncation_are_refused(engine: EmbedEngine) -> None:
    for fields in ODD:
        assert error_of(await engine.answer(request("a b c d e", **fields)))["param"] in fields, fields


async def test_too_long_without_a_wish_is_an_error(engine: EmbedEngine) -> None:
    wishes: list[dict[str, Any]] = [{}, {"truncate": False}, {"truncate": False, "truncate_prompt_tokens": -1}]
    for inputs, fields in itertools.product((["a", LONG], [[5], [5] * 300]), wishes):
        error = error_of(await engine.answer(request(inputs, **fields)))

        assert error["code"] == "context_length_exceeded", fields
        assert "(input 1)" in error["message"]
        assert "truncated" not in body_of(await engine.answer(request("a", **fields)))


def test_importing_the_engine_does_not_load_torch() -> None:
    code = "import sys, workers.engines.encoders.embed; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tokens_of_all_inputs_together_are_limited() -> None:
    with pytest.raises(Unacceptable, match="at most 300000 tokens in all"):
        check_lengths([256] * 1200, 256)


async def job(priority: int = 0) -> EncoderTask:
    future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    return EncoderTask(EmbedInput(["x"], False, 1), [1], flow_of("p", priority, 1, 4096), priority, future)


async def test_pool_gives_the_oldest_input_and_its_neighbours_in_length() -> None:
    pool, owner = InputPool(), await job()
    for length in (100, 3, 90, 101, 4, 300):
        pool.add(owner, length, [0] * length)

    batches = []
    while pool:
        batches.append([entry[0] for entry in pool.pick(310)])

    assert batches == [[90, 100, 101], [3, 4], [300]]


async def test_pool_never_pads_beyond_its_budget_and_loses_nothing() -> None:
    random.seed(3)
    pool, owner = InputPool(), await job()
    lengths = [random.randint(1, 256) for _ in range(500)]
    for which, length in enumerate(lengths):
        pool.add(owner, which, [0] * length)

    seen = []
    while pool:
        batch = pool.pick(1024)
        assert max(entry[0] for entry in batch) * len(batch) <= 1024
        seen += [entry[3] for entry in batch]

    assert sorted(seen) == list(range(500))


async def test_pool_takes_an_input_without_tokens() -> None:
    pool, owner = InputPool(), await job()
    for length in (0, 5):
        pool.add(owner, length, [0] * length)

    assert [entry[0] for entry in pool.pick(100)] == [0, 5]


async def test_pool_serves_a_lower_priority_number_first() -> None:
    pool, later, sooner = InputPool(), await job(5), await job(-5)
    pool.add(later, 0, [0] * 100)
    pool.add(sooner, 0, [0] * 10)

    assert pool.pick(10)[0][2] is sooner


async def test_pool_forgets_inputs_of_cancelled_requests() -> None:
    pool, gone, here = InputPool(), await job(), await job()
    for _ in range(3):
        pool.add(gone, 0, [0] * 10)
    pool.add(here, 0, [0] * 50)
    gone.answer.cancel()

    assert [entry[2] for entry in pool.pick(1000)] == [here]
    assert pool.pick(1000) == []
    assert not pool


def test_padding_uses_limited_number_of_widths() -> None:
    widths = {tokens: padded_width(tokens, 250) for tokens in range(1, 251)}

    assert len(set(widths.values())) == 19
    assert all(tokens <= width <= 250 for tokens, width in widths.items())
    assert padded_width(300, 250) == 300, "what is too long was refused, or the model says too little of itself"
