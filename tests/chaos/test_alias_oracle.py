"""The judgement of aliases finds what it is to find."""

from collections.abc import Sequence
from typing import Any

import pytest
from openai.types import Batch

from jobs.registry.aliases import MOVED, ROLLED_BACK
from tests.chaos.judging_aliases import permitted_ends, wrong_pairs
from tests.chaos.promotion_clients import KnownPromotion
from tests.support import alias_oracle
from tests.support.alias_oracle import SERVED, AuditRow, MoveRow, RoutedAnswer, SeenMove, text_of
from tests.support.oracle import Result
from tests.support.stub_engine import CANARY
from tests.support.system import BROKEN_MODEL, CACHED_MODEL, CANARY_MODEL, MODEL

PROMPT = "Route case 7 to its helpline!"
#: The alias stands for the first model up to second 10 or 11, then for the other one.
SEEN = (
    SeenMove("amove_1", "create", frozenset({CACHED_MODEL}), 0.0, 1.0),
    SeenMove("amove_2", "update", frozenset({CANARY_MODEL}), 10.0, 11.0),
)


def answer(model: str, began: float, ended: float, **fields: Any) -> RoutedAnswer:
    whole = RoutedAnswer(PROMPT, began, ended, model, frozenset({SERVED[model]}), text_of(PROMPT, model))
    return whole._replace(**fields)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (answer(CACHED_MODEL, 5, 6), ""),
        (answer(CACHED_MODEL, 12, 13), ""),  # the process had not looked yet
        (answer(CANARY_MODEL, 9, 10.5), ""),  # the move was made meanwhile
        (answer(CANARY_MODEL, 20, 21, text=None), ""),
        (answer(CANARY_MODEL, 5, 6), "answered by stub-canary, while the alias stood for ['stub-cached']"),
        (answer(CACHED_MODEL, 14, 15), "answered by stub-cached"),
        (answer(MODEL, 5, 6), "answered by stub-model"),
        (
            answer(CACHED_MODEL, 10, 11, header=CANARY_MODEL),
            "the header names stub-canary, and the answer ['stub-model']",
        ),
        (answer(CACHED_MODEL, 5, 6, models=frozenset({MODEL, CANARY})), "the header names stub-cached"),
        (answer(CACHED_MODEL, 5, 6, header=None), "the header names None"),
        (answer(BROKEN_MODEL, 5, 6, models=frozenset(), text=None), "answered by stub-broken"),
        (answer(CACHED_MODEL, 5, 6, text=text_of(PROMPT, CANARY_MODEL)), "the text"),
    ],
)
def test_answer_is_that_of_a_model_for_which_the_alias_stood(given: RoutedAnswer, words: str) -> None:
    faults = list(alias_oracle.wrong_answers([given], SEEN, lag=2.0))

    assert len(faults) == bool(words)
    assert all(words in fault for fault in faults)


CREATED = MoveRow("amove_1", "create", "key:1", "move-000", CACHED_MODEL, None, [MOVED])
PLANTED = CREATED._replace(id="amove_2", action="update", reason="move-001")
BACK = MoveRow("amove_3", "rollback", "dispatcher", "fails", CACHED_MODEL, None, [MOVED, ROLLED_BACK], 50)
PROMOTED = MoveRow("amove_4", "update", "key:1", "better", CANARY_MODEL, "promo_1", [MOVED])
ROWS = (CREATED, PLANTED, BACK, PROMOTED)
KEYS = ("move-000", "move-001")


@pytest.mark.parametrize(
    ("rows", "keys", "model", "words"),
    [
        (ROWS, KEYS, CANARY_MODEL, ""),
        ((CREATED, BACK, PROMOTED), KEYS, CANARY_MODEL, "move-001 was acknowledged, and made 0 times"),
        ((*ROWS, PLANTED), KEYS, CACHED_MODEL, "made 2 times"),
        (ROWS, KEYS[:1], CANARY_MODEL, "nobody has asked for"),
        ((PLANTED, CREATED, BACK, PROMOTED), KEYS, CANARY_MODEL, "were made as"),
        (ROWS, KEYS, CACHED_MODEL, "its last move for stub-canary"),
    ],
)
def test_acknowledged_moves_are_made_once_in_their_order(
    rows: Sequence[MoveRow], keys: Sequence[str], model: str, words: str
) -> None:
    faults = list(alias_oracle.wrong_moves("helpline", rows, keys, model))

    assert bool(faults) == bool(words)
    assert not faults or any(words in fault for fault in faults)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (BACK, ""),
        (BACK._replace(actor="key:1"), "key:1 has made the move amove_3, a rollback"),
        (PLANTED._replace(actor="dispatcher"), "dispatcher has made the move amove_2, a update"),
        (BACK._replace(least=49), "after 49 requests"),
    ],
)
def test_rollback_is_made_by_the_dispatcher_after_enough_requests(row: MoveRow, words: str) -> None:
    faults = list(alias_oracle.wrong_rollbacks("helpline", [row]))

    assert len(faults) == bool(words)
    assert all(words in fault for fault in faults)


AUDITS = (
    AuditRow("alias.create", "key:1", CACHED_MODEL, None),
    AuditRow("alias.update", "key:1", CACHED_MODEL, None),
    AuditRow("alias.rollback", "dispatcher", CACHED_MODEL, None),
    AuditRow("alias.update", "key:1", CANARY_MODEL, "promo_1"),
)


@pytest.mark.parametrize(
    "audits",
    [AUDITS[:3], AUDITS[1:], (*AUDITS, AUDITS[3]), (*AUDITS[:3], AUDITS[3]._replace(actor="key:2"))],
)
def test_each_move_has_its_audit_row(audits: Sequence[AuditRow]) -> None:
    assert list(alias_oracle.unaudited_moves("helpline", ROWS, AUDITS)) == []
    assert len(list(alias_oracle.unaudited_moves("helpline", ROWS, audits))) == 1


@pytest.mark.parametrize(
    ("back", "probes", "words"),
    [
        (BACK, 1, ""),
        (BACK, 0, "1 roll-backs are complete, and the engine was asked by 0 probes"),
        (BACK._replace(events=[MOVED]), 1, "was never complete"),
        (BACK._replace(events=[MOVED, ROLLED_BACK, ROLLED_BACK]), 2, "has the events"),
        (BACK._replace(events=[]), 1, "has the events"),
    ],
)
def test_rollback_is_complete_once_after_a_probe(back: MoveRow, probes: int, words: str) -> None:
    faults = list(alias_oracle.untold_moves("helpline", (CREATED, PLANTED, back), ["amove_3"], probes))

    assert bool(faults) == bool(words)
    assert not faults or any(words in fault for fault in faults)


@pytest.mark.parametrize(
    ("ends", "moved", "words"),
    [
        ({"promo_1": "promoted", "promo_2": "refused"}, ["promo_1"], ""),
        ({"promo_1": "promoted"}, [], "promo_1 is promoted, and has made 0 moves"),
        ({"promo_1": "promoted"}, ["promo_1", "promo_1"], "has made 2 moves"),
        ({"promo_1": "refused"}, ["promo_1"], "promo_1 is refused, and has made 1 moves"),
        ({}, ["promo_1"], "nobody has made"),
    ],
)
def test_moves_of_promotions_are_those_that_were_promoted(ends: dict[str, str], moved: list[str], words: str) -> None:
    faults = list(alias_oracle.wrong_promotions(ends, moved))

    assert len(faults) == bool(words)
    assert all(words in fault for fault in faults)


def two(*ends: tuple[str, str | None, bool]) -> list[KnownPromotion]:
    """Return promotions of one moment by their status, the code of their error and whether their gate passes."""
    return [
        KnownPromotion(f"pair-0-{n}", CANARY_MODEL, passes, "pair-0", f"promo_{n}", status, code)
        for n, (status, code, passes) in enumerate(ends)
    ]


def test_second_promotion_of_the_same_moment_is_refused() -> None:
    moved, late, failed = ("promoted", None, True), ("refused", "target_moved", True), ("refused", "gate_failed", False)

    assert [list(wrong_pairs(two(*pair))) for pair in ((moved, late), (moved, failed), (failed, failed))] == [[]] * 3
    assert [len(list(wrong_pairs(two(*pair)))) for pair in ((moved, moved), (late, late))] == [1, 1]
    assert list(wrong_pairs(two(moved, ("refused", "key_revoked", True))))
    assert permitted_ends(two(failed)[0]) == {"refused"}
    assert permitted_ends(KnownPromotion("stage-0", "ft:a")) == {"promoted"}


PROMPTS = {"a": "Say a!", "b": "Say b!"}


def result(*lines: tuple[str, str, str], resolved: str = CANARY_MODEL) -> Result:
    """Return a batch with lines by their custom_id, the model that each names, and the one whose text each has."""
    batch = Batch.model_construct(status="completed", resolved_model=resolved)
    output = [
        {
            "custom_id": name,
            "resolved_model": model,
            "response": {
                "body": {"model": SERVED[model], "choices": [{"message": {"content": text_of(PROMPTS[name], voice)}}]}
            },
        }
        for name, model, voice in lines
    ]
    return Result(batch, output)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (result(("a", CANARY_MODEL, CANARY_MODEL), ("b", CANARY_MODEL, CANARY_MODEL)), ""),
        (result(("a", CANARY_MODEL, CANARY_MODEL)), "1 lines of 2"),
        (result(("a", CANARY_MODEL, CANARY_MODEL), ("b", MODEL, MODEL)), "b names stub-model and stub-model"),
        (result(("a", CANARY_MODEL, MODEL), ("b", CANARY_MODEL, CANARY_MODEL)), "a names stub-canary, and has"),
        (result(resolved=BROKEN_MODEL), "never stood for"),
    ],
)
def test_batch_is_answered_by_a_single_model(given: Result, words: str) -> None:
    faults = list(alias_oracle.wrong_lines("routed-0", PROMPTS, given, (MODEL, CANARY_MODEL)))

    assert len(faults) == bool(words)
    assert all(words in fault for fault in faults)
