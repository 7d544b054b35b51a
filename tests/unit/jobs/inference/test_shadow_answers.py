"""Answers of shadows that are kept: the newest of each project, those of a time, and none that is large."""

import json

import pytest
from sqlalchemy import func, select, update

from jobs.clock import now
from jobs.db.engine import Database
from jobs.inference import shadow_answers
from jobs.inference.shadow_answers import AnswerPair, pair_of
from jobs.inference.tables import ShadowAnswer


def pair(project_id: str = "p", alias: str = "support", said: str = "Yes") -> AnswerPair:
    made = pair_of(project_id, alias, given="May I?", answer="Yes", model="rival", output_text=said)
    assert made is not None
    return made


def test_pair_is_line_of_run() -> None:
    assert json.loads(pair(said="No").line) == {
        "item": {"input": "May I?", "answer": "Yes", "model": "rival"},
        "sample": {"output_text": "No"},
    }


def test_large_pair_is_left_out() -> None:
    assert pair_of("p", "support", given="x" * (32 << 10), answer="Yes", model="rival", output_text="No") is None


def test_newest_pairs_of_each_project_stay(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow_answers, "MAX_PAIRS", 3)
    for number in range(5):
        with db.write() as session:
            shadow_answers.write(
                session, [pair(said=str(number)), pair("q")] if number < 2 else [pair(said=str(number))]
            )

    with db.read() as session:
        lines = [line for _, line in shadow_answers.find(session, "p", "support", 0, now() + 1)]
        count = session.scalar(select(func.count()).where(ShadowAnswer.project_id == "q"))
    assert [json.loads(line)["sample"]["output_text"] for line in lines] == ["2", "3", "4"]
    assert count == 2


def test_pairs_are_those_of_alias_and_time(db: Database) -> None:
    for at, alias in ((10.0, "support"), (20.0, "support"), (20.0, "sales")):
        with db.write() as session:
            shadow_answers.write(session, [pair(alias=alias, said=f"{alias} {at}")])
            session.execute(update(ShadowAnswer).where(ShadowAnswer.created_at > 1000).values(created_at=at))

    def texts(since: float, until: float) -> list[str]:
        with db.read() as session:
            lines = shadow_answers.find(session, "p", "support", since, until)
            return [json.loads(line)["sample"]["output_text"] for _, line in lines]

    assert texts(10, 20) == ["support 10.0"]
    assert texts(10, 21) == ["support 10.0", "support 20.0"]
    assert texts(21, 30) == []
