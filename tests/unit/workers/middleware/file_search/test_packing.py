"""Excerpts by priority within what a model has room for."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from jobs.fleet.models_file import Registry
from jobs.retrieval.searches import FoundChunk
from jobs.settings import Settings
from workers.engines.model_folders import MINILM, materialise
from workers.inference.token_counting import ContextLimits
from workers.middleware.file_search.excerpts import ContextBudget, excerpt_budget, join_neighbours, select_excerpts
from workers.middleware.quoting import excerpt

TEXT = "".join(f"Sentence number {n} of the file. " for n in range(100))


def part(n: int, start: int, end: int, file: str = "file-1") -> FoundChunk:
    return FoundChunk(file, f"{file}.txt", 1.0, TEXT[start:end], None, {"start": start, "end": end}, n)


def places(shown: list[FoundChunk]) -> list[tuple[str, int, int, int]]:
    return [(one.file_id, one.n, one.meta["start"], one.meta["end"]) for one in shown]


def test_best_excerpt_comes_first_and_oversized_excerpt_is_skipped() -> None:
    found = [part(0, 0, 400), part(1, 400, 2000, "file-2"), part(2, 2000, 2200, "file-3")]

    first, second = (ContextBudget(0).count(excerpt(n, one)) + 2 for n, one in enumerate((found[0], found[2]), 1))

    assert [one.file_id for one in select_excerpts(found, ContextBudget(0), first + second)] == ["file-1", "file-3"]
    assert [one.file_id for one in select_excerpts(found, ContextBudget(0), first + second - 1)] == ["file-1"]
    assert select_excerpts([], ContextBudget(0), 100) == []


def test_excerpt_size_includes_quote_marks(tokenizer: Tokenizer) -> None:
    """A mark before each line is much where lines are short."""
    room = ContextBudget(4096, tokenizer)
    lines = [FoundChunk(f"file-{n}", "a.py", 1.0, "x\n" * 200, None, {}) for n in range(4)]
    needed = [room.count(excerpt(n, one)) + 2 for n, one in enumerate(lines, 1)]

    assert needed[0] > room.count(lines[0].text) + 200
    assert len(select_excerpts(lines, room, sum(needed))) == 4
    assert len(select_excerpts(lines, room, sum(needed) - 1)) == 3
    [cut] = select_excerpts(lines, room, needed[0] // 2)
    assert needed[0] // 2 - 4 <= room.count(excerpt(1, cut)) + 2 <= needed[0] // 2


def test_of_the_best_at_least_the_beginning_is_shown() -> None:
    [cut] = select_excerpts([part(0, 500, 2000), part(1, 0, 20)], ContextBudget(0), -5)

    assert ContextBudget(0).count(excerpt(1, cut)) == 88
    assert (cut.text, cut.meta) == (TEXT[500 : cut.meta["end"]], {"start": 500, "end": cut.meta["end"]})
    assert 64 * 4 < len(cut.text) < 88 * 4


def test_parts_that_follow_each_other_stand_in_order_and_say_nothing_twice() -> None:
    kept = [part(4, 800, 1000), part(0, 0, 100, "file-2"), part(3, 700, 900), part(9, 2000, 2100), part(5, 950, 1100)]

    shown = join_neighbours(kept)

    assert places(shown) == [
        ("file-1", 3, 700, 900),
        ("file-1", 4, 900, 1000),
        ("file-1", 5, 1000, 1100),
        ("file-2", 0, 0, 100),
        ("file-1", 9, 2000, 2100),
    ]
    assert "".join(one.text for one in shown[:3]) == TEXT[700:1100]
    assert all(one.text == TEXT[one.meta["start"] : one.meta["end"]] for one in shown)


def test_middle_chunk_joins_its_neighbours() -> None:
    shown = join_neighbours([part(1, 100, 200), part(3, 300, 400), part(0, 0, 50, "file-2"), part(2, 200, 300)])

    assert [(one.file_id, one.n) for one in shown] == [("file-1", 1), ("file-1", 2), ("file-1", 3), ("file-2", 0)]


def test_chunk_contained_in_another_chunk_is_omitted() -> None:
    assert places(join_neighbours([part(0, 0, 500), part(1, 100, 300)])) == [("file-1", 0, 0, 500)]


def test_chunks_without_position_are_unchanged() -> None:
    bare = FoundChunk("file-1", "a", 1.0, "text", None, {})

    assert join_neighbours([bare, bare]) == [bare, bare]
    assert select_excerpts([bare], ContextBudget(0), 0)[0].meta == {}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = materialise(MINILM, tmp_path_factory.mktemp("models"))
    found = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found.no_truncation()
    found.no_padding()
    return found


def test_tokens_are_the_models_own_and_else_estimated(tokenizer: Tokenizer) -> None:
    exact, rough = ContextBudget(512, tokenizer), ContextBudget(512)

    assert (exact.count("hello world"), rough.count("hello world")) == (2, 3)
    assert rough.count("ééé") == 2


def test_the_question_and_its_answer_take_their_part(tokenizer: Tokenizer) -> None:
    room = ContextBudget(2048, tokenizer)
    short: dict[str, Any] = {"input": "hello"}

    assert (
        room.remaining_tokens(short | {"max_output_tokens": 100})
        - room.remaining_tokens(short | {"max_output_tokens": 300})
        == 200
    )
    assert 1300 < room.remaining_tokens(short) < 2048 - 512
    longer = {"input": "hello " * 500}
    assert room.remaining_tokens(short) - room.remaining_tokens(longer) == pytest.approx(499, abs=3)
    assert room.remaining_tokens({"input": "x" * 70_000}) == 0
    picture = {"type": "input_image", "image_url": f"data:image/png;base64,{'iVBORw0KGgo+/' * 9000}=="}
    assert room.remaining_tokens({"input": [{"role": "user", "content": [picture]}]}) > 1200


MODELS = """
models:
  here: {source: {packaged: all-minilm-l6-v2}, engine: embed, max_model_len: 256, aliases: [nick]}
  folder: {source: {path: folder}, engine: vllm, engine_args: {max_model_len: 77}}
  bare: {source: {path: folder}, engine: vllm, queue: gpu.b}
  remote: {source: {urls: ["http://127.0.0.1:9/v1"]}, engine: http, max_model_len: 4096}
  unknown: {source: {urls: ["http://127.0.0.1:9/v1"]}, engine: http}
  hub: {source: {repo: a/b, revision: "0000000000000000000000000000000000000000"}, engine: vllm, queue: gpu.c}
  gone: {source: {path: nowhere}, engine: vllm, queue: gpu.d}
"""


@pytest.mark.parametrize(
    ("name", "context", "counted"),
    [
        ("here", 256, True), ("nick", 256, True), ("folder", 77, True), ("bare", 900, True), ("remote", 4096, False),
        ("unknown", 16_384, False), ("hub", 16_384, False), ("gone", 16_384, False), ("nobody", 16_384, False),
    ],
)  # fmt: skip
def test_context_limit_is_read_from_model_configuration(
    tmp_path: Path, tokenizer: Tokenizer, name: str, context: int, counted: bool
) -> None:
    (tmp_path / "models.yaml").write_text(MODELS)
    (tmp_path / "folder").mkdir()
    tokenizer.save(str(tmp_path / "folder" / "tokenizer.json"))
    (tmp_path / "folder" / "config.json").write_text('{"max_position_embeddings": 900}')
    registry = Registry.read(tmp_path / "models.yaml")

    room = ContextLimits(Settings(data_dir=tmp_path), lambda: registry).of(name)

    assert (room.context, room.tokenizer is not None) == (context, counted)


def test_a_history_that_may_be_cut_leaves_room_for_excerpts() -> None:
    room = ContextBudget(16_384)
    long = {"input": [{"role": "user", "content": "x" * 70_000}, {"role": "user", "content": "Cats?"}]}

    assert excerpt_budget(room, long) < 0
    assert excerpt_budget(room, long | {"context": {"route_long": "large"}}) < 0
    for terms in ({"context": {"strategy": "sliding_window"}}, {"truncation": "auto"}):
        assert 7_000 < excerpt_budget(room, long | terms) < 8_192


def test_excerpts_stay_within_requested_prompt_limit() -> None:
    body = {"input": "Cats?", "context": {"strategy": "sliding_window", "max_tokens": 2000}}

    assert 1_500 < excerpt_budget(ContextBudget(16_384), body) < 2_000
    assert excerpt_budget(ContextBudget(16_384), {"input": "Cats?", "context": {"strategy": 5}}) > 10_000
