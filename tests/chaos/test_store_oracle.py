"""The judgement of vector stores reports each violation, made by hand."""

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from openai.types import VectorStoreSearchResponse as Found

from tests.support import oracle, store_oracle
from tests.support.oracle import Told
from tests.support.store_oracle import LARGE, SMALL, Intake, KnownStore, Paper, make_paper
from tests.support.stub_engine import text_mark

pytestmark = pytest.mark.verify


def _paper(**changes: Any) -> Paper:
    fields = {"key": "paper", "name": "p.txt", "content": b"", "stem": "abc", "words": 6, "file_id": "file-1"}
    return Paper(**{**fields, "status": "completed", "sizes": {SMALL}, **changes})


def _chunk(words: range, tokens: int = SMALL, file_id: str = "file-1") -> Found:
    text = " ".join(f"abc{n:03d}" for n in words)
    chunk = {"start": 7 * words.start, "end": 7 * words.stop, "tokens": tokens}
    return Found.construct(file_id=file_id, content=[{"type": "text", "text": text}], chunk=chunk)


@pytest.mark.parametrize(
    ("found", "violation"),
    [
        ([], ""),
        ([_chunk(range(3, 6)), _chunk(range(3))], ""),
        ([_chunk(range(3))], "3 of 6 words: missing [3, 4, 5]"),
        ([_chunk(range(3)), _chunk(range(2, 6))], "more than once [2]"),
        ([_chunk(range(6), tokens=LARGE)], f"the version of {LARGE} tokens"),
        ([_chunk(range(6), file_id="file-2")], "shows ['file-2']"),
    ],
)
def test_search_must_show_complete_single_version(found: list[Found], violation: str) -> None:
    faults = store_oracle.whole(_paper(), found, {SMALL})

    assert len(faults) == bool(violation)
    assert violation in "".join(faults)


@pytest.mark.parametrize(
    ("paper", "status", "code", "passes"),
    [
        (_paper(), "completed", None, True),
        (_paper(), "failed", "server_error", False),
        (_paper(), "cancelled", None, False),
        (_paper(uncertain=True), "cancelled", None, True),
        (_paper(refused=frozenset({"invalid_file"})), "failed", "invalid_file", True),
        (_paper(refused=frozenset({"invalid_file"})), "failed", "server_error", False),
        (_paper(refused=frozenset({"invalid_file"})), "completed", None, False),
    ],
)
def test_file_status_must_match_paper(paper: Paper, status: str, code: str | None, passes: bool) -> None:
    assert (not store_oracle.settled(paper, status, code)) is passes


def _intake(**changes: Any) -> Intake:
    papers = [_paper(), _paper(file_id="file-2", refused=frozenset({"invalid_file"}))]
    return Intake(
        **{"key": "intake", "store": KnownStore("store"), "papers": papers, "batch": True, "id": "vsfb_1", **changes}
    )


def _counts(**changes: int) -> dict[str, int]:
    return {"in_progress": 0, "completed": 1, "failed": 1, "cancelled": 0, "total": 2, **changes}


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({"counts": _counts()}, True),
        ({"counts": _counts(completed=2, failed=0)}, False),
        ({"counts": _counts(completed=2, failed=0), "disturbed": True}, True),
        ({"counts": _counts(completed=2)}, False),
        ({"counts": _counts(completed=0, in_progress=1)}, False),
        ({"counts": _counts(), "status": "cancelled"}, False),
        ({"counts": _counts(completed=0, cancelled=1), "status": "cancelled", "cancelled": True}, True),
    ],
)
def test_counts_of_a_batch_are_of_all_its_files(changes: dict[str, Any], passes: bool) -> None:
    assert (not store_oracle.added_up(_intake(**{"status": "completed", **changes}))) is passes


_MADE = (
    ("vector_store.file.completed", "file-1"),
    ("vector_store.file.failed", "file-2"),
    ("vector_store.file_batch.completed", "vsfb_1"),
)


def _events(*kinds: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"seq": n, "id": f"evt_{n}", "type": kind, "data": {"id": name}} for n, (kind, name) in enumerate(kinds, 1)]


def _hooks(events: list[dict[str, Any]]) -> list[Told]:
    return [Told("/all", f"wh_{event['seq']}", event["id"], event["type"], event["data"]["id"]) for event in events]


def test_file_and_end_events_must_each_be_delivered_under_single_id() -> None:
    events = _events(*_MADE)
    hooks = _hooks(events)

    assert store_oracle.told(_intake(), events, hooks * 2) == []
    assert "told as []" in "".join(store_oracle.told(_intake(), events, hooks[1:]))
    assert "told as ['wh_1', 'wh_9']" in "".join(
        store_oracle.told(_intake(), events, [*hooks, replace(hooks[0], webhook_id="wh_9")])
    )


@pytest.mark.parametrize("kinds", [_MADE[1:], (_MADE[0], *_MADE), _MADE[:2], (_MADE[2], *_MADE[:2])])
def test_events_that_are_missing_or_too_many_are_found(kinds: tuple[tuple[str, str], ...]) -> None:
    events = _events(*kinds)

    assert store_oracle.told(_intake(), events, _hooks(events)) != []


def test_key_without_single_ingestion_is_reported() -> None:
    assert store_oracle.one_job_each(["intake"], [_intake()]) == []
    assert len(store_oracle.one_job_each(["intake", "intake", "other"], [_intake()])) == 2


def test_papers_have_words_of_their_own_in_every_format() -> None:
    papers = [make_paper(n, random.Random(n)) for n in range(40)]

    assert len({paper.name.rpartition(".")[2] for paper in papers}) == 4
    assert len({paper.stem for paper in papers}) == 40
    for paper in papers:
        text = paper.content.decode()
        assert Counter(text.count(f"{paper.stem}{n:03d}") for n in range(paper.words)) == {1: paper.words}
        assert text.count(paper.needle) == 1


def test_repeated_embeddings_are_counted_and_searches_are_not() -> None:
    texts = [text_mark(text) for text in ("a", "b", "a", "a", "query", "query")]

    assert oracle.embedded_again([*texts, "a prompt", "a prompt"], {text_mark("query")}) == 2
    assert oracle.rework([*texts, "a prompt", "a prompt"]) == 1
