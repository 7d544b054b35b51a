"""Judges of doses find the violations that they are for, and pass correct results."""

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from openai.types import Batch

from tests.chaos.doses import __main__ as command
from tests.chaos.doses.backups import changed, copied, misheard, other, unfinished
from tests.chaos.doses.clients import healthy
from tests.chaos.doses.deployment import Answer
from tests.chaos.doses.dose import Given, Outcome, row
from tests.chaos.doses.hooks import firsts, off_schedule, punctual, told_once
from tests.chaos.doses.intake import answered, exist, same
from tests.chaos.doses.known import batch_of, unlike
from tests.chaos.doses.lines import asked_too_often, one_end, poisoned, wrong_ends
from tests.chaos.doses.network import asked_twice, chats
from tests.chaos.doses.vectors import Shown, searched
from tests.chaos.doses.versions import NoOldVersion, idle, older_commit, unserved
from tests.support import oracle
from tests.support.fake_engine import reply
from tests.support.receiver import Received

pytestmark = pytest.mark.verify

_OK = Answer("k1", 200, 0.1, "batch_1")
_BUSY = Answer("k2", 503, 1.0, retry_after="1")
_CHAT = Answer("a1", 200, 0.5, "chatcmpl_1")
_AWAY = Answer("a2", 503, 3.0, told='{"error":{"message":"The streams are away.","type":"server_error"}}')
_LIVE = Answer("livez", 200, 0.1)


def _shown(status: int = 200, chunks: int = 50, paper: str = "p1", seconds: float = 0.1) -> Shown:
    return Shown(Answer("look", status, seconds), "p1", tuple((paper, n) for n in range(chunks)))


#: What each judge passes.
_RIGHT: dict[Callable[[Outcome, Any], None], Sequence[Any]] = {
    answered: (_OK, _BUSY),
    healthy: (_LIVE,),
    chats: (_CHAT, _AWAY),
    searched: (_shown(), _shown(503, 0), _shown(chunks=0)),
}


def _judged(judge: Callable[[Outcome, Any], None], answers: Sequence[Any]) -> str:
    outcome = Outcome("a dose")
    judge(outcome, answers)
    return "; ".join(outcome.violations)


@pytest.mark.parametrize("judge", _RIGHT)
def test_answers_that_are_right_and_in_time_pass(judge: Callable[[Outcome, Any], None]) -> None:
    assert _judged(judge, _RIGHT[judge]) == ""


@pytest.mark.parametrize(
    ("judge", "wrong", "why"),
    [
        (answered, Answer("k3", 500, 0.1, told="broken"), "k3: 500"),
        (answered, Answer("k3", 0, 0.1, told="reset"), "k3: 0"),
        (answered, Answer("k3", 503, 0.1), "1 have none"),
        (answered, Answer("k3", 503, 2.1, retry_after="1"), "503 after, worst 2.1 s is more than"),
        (answered, Answer("k3", 200, 19.0, "batch_3"), "200 after, worst 19 s is more than"),
        (healthy, Answer("livez", 0, 0.1, told="reset"), "livez: 0 reset"),
        (healthy, Answer("readyz", 503, 0.1), "readyz: 503"),
        (healthy, Answer("livez", 200, 2.5), "answered after, worst 2.5 s is more than"),
        (chats, Answer("a3", 500, 0.1, told=_AWAY.told), "a3: 500"),
        (chats, Answer("a3", 0, 0.1, told="ReadError"), "a3: 0"),
        (chats, Answer("a3", 503, 0.1, told="<html>"), "a3: 503"),
        (chats, Answer("a3", 200, 31.0, "chatcmpl_3"), "completions after, worst 31 s is more than"),
        (searched, _shown(500, 0), "look: 500"),
        (searched, _shown(0, 0), "look: 0"),
        (searched, _shown(chunks=49), "49 chunks of ['p1']"),
        (searched, _shown(paper="p2"), "50 chunks of ['p2']"),
        (searched, Shown(Answer("look", 200, 0.1), "p1", (("p1", 1),) * 50), "1 chunks"),
        (searched, _shown(seconds=61.0), "searches, worst 61 s is more than"),
    ],
)
def test_answer_that_is_wrong_or_late_is_found(judge: Callable[[Outcome, Any], None], wrong: Any, why: str) -> None:
    assert why in _judged(judge, [*_RIGHT[judge], wrong])


@pytest.mark.parametrize(
    ("judge", "refused", "why"),
    [
        (answered, _BUSY, "no create was answered with 200"),
        (chats, _AWAY, "no completion"),
        (searched, _shown(503, 0), "no search showed anything"),
    ],
)
def test_unresponsive_deployment_is_reported(judge: Callable[[Outcome, Any], None], refused: Any, why: str) -> None:
    assert why in _judged(judge, [refused])


def _job(name: str, key: str, state: str = "succeeded") -> dict[str, Any]:
    return {"id": name, "idempotency_key": key, "state": state}


def _sent(at: float, name: str = "msg_1", subject: str = "batch_1", more: str = "") -> Received:
    return Received(at, "/ok", {"webhook-id": name}, json.dumps({"data": {"id": subject, "more": more}}).encode())


def _heard(pending: Sequence[str], before: Sequence[Received], after: Sequence[Received]) -> list[str]:
    return misheard(dict.fromkeys(pending, "pending"), ["msg_1"], before, after)


_SUM = {"state": "succeeded", "completed": 2}


@pytest.mark.parametrize(
    ("faults", "why"),
    [
        (exist([_OK, _BUSY], [_job("batch_1", "k1"), _job("batch_2", "k2")]), ""),
        (exist([_OK], []), "batch_1 was created and is not there"),
        (exist([_OK], [_job("batch_1", "k1"), _job("batch_2", "k1")]), "2 jobs for k1"),
        (exist([_OK], [_job("batch_1", "k1"), _job("batch_2", "k9")]), "a job of k9, which nobody posted"),
        (exist([_OK], [_job("batch_1", "k1", "failed")]), "batch_1 is failed"),
        (same([_OK], [_OK]), ""),
        (same([Answer("k1", 0, 0.01)], [_OK]), ""),
        (same([Answer("k1", 200, 0.1, "batch_7")], [_OK]), "k1 was batch_7 and is batch_1"),
        (same([Answer("k1", 0, 0.01)], [_BUSY]), "k2: 503"),
        (asked_too_often(["say !reset"] * 3 + ["say !crash"] * 4 + ["say it"] * 9), ""),
        (asked_too_often(["say !reset"] * 4), "4 times"),
        (asked_too_often(["say !crash"] * 5), "5 times"),
        (wrong_ends({"cancelled": 3, "completed": 1}), ""),
        (wrong_ends({"cancelled": 3, "failed": 1}), "failed"),
        (one_end("batch_1", "cancelled", ["job.queued", "batch.cancelled"]), ""),
        (one_end("batch_1", "cancelled", ["batch.cancelled", "batch.completed"]), "batch_1"),
        (one_end("batch_1", "completed", ["job.queued"]), "batch_1"),
        (changed({"batch_1": _SUM}, {"batch_1": dict(_SUM), "batch_2": {"state": "failed"}}), ""),
        (changed({"batch_1": _SUM}, {}), "batch_1 has ended and is not there"),
        (changed({"batch_1": _SUM}, {"batch_1": _SUM | {"completed": 3}}), "'completed': (2, 3)"),
        (other({"file-1": "aa", "file-2": "bb"}, {"file-1": "aa"}), ""),
        (other({"file-1": "aa"}, {"file-1": "bb"}), "file-1 is another"),
        (other({"file-1": "aa"}, {"file-1": ""}), "file-1 is not there"),
        (unfinished(["batch_1"], {"batch_1": _SUM}), ""),
        (unfinished(["batch_1"], {"batch_1": {"state": "failed"}}), "batch_1 is failed"),
        (unfinished(["batch_2"], {"batch_1": _SUM}), "batch_2 is not there"),
        (_heard(["msg_1"], [_sent(1)], []), ""),
        (_heard(["msg_1"], [_sent(1)], [_sent(2)]), ""),
        (_heard(["msg_1", "msg_9"], [_sent(1), _sent(1, "msg_2", "batch_2")], [_sent(2, "msg_9", "batch_2")]), ""),
        (_heard(["msg_1"], [], []), "msg_1 is pending and did not come"),
        (_heard(["msg_1"], [_sent(1)], [_sent(2, more="other")]), "2 bodies"),
        (
            _heard(
                ["msg_1", "msg_8", "msg_9"],
                [_sent(1)],
                [_sent(2, "msg_8", "batch_2"), _sent(2, "msg_9", "batch_2")],
            ),
            "2 ids",
        ),
        (idle({"old": 1, "new": 2}), ""),
        (idle({"old": 0, "new": 2}), "no worker of the old version did anything"),
        (unserved({"old": {200: 3}, "new": {200: 1}}), ""),
        (unserved({"old": {200: 3}, "new": {200: 1, 503: 2}}), "503 from the new version"),
        (unserved({"old": {}}), "nobody was answered by the old version"),
        (unserved({"old": {200: 3, 500: 1}}), "500 from the old version"),
    ],
)
def test_fault_of_a_job_a_file_a_webhook_or_a_version_is_found(faults: list[str], why: str) -> None:
    assert len(faults) == bool(why)
    assert why in "".join(faults)


def test_first_attempt_latency_is_measured_and_missing_event_is_reported() -> None:
    told = firsts([_sent(10.5), _sent(99.0)])

    assert punctual(told, {"batch_1": 10.0}) == (0.5, [])
    assert "batch_2" in punctual(told, {"batch_1": 10.0, "batch_2": 11.0})[1][0]


def test_the_wait_before_each_attempt_is_weighed_against_the_schedule() -> None:
    off = off_schedule([_sent(0), _sent(1.1), _sent(4.1)], [0, 1, 2])

    assert off == {1: pytest.approx(0.1), 2: pytest.approx(0.5)}


@pytest.mark.parametrize(
    ("requests", "again", "why"),
    [
        ([_sent(1), _sent(2, "msg_2", "batch_2")], 0, ""),
        ([_sent(1), _sent(2)], 1, ""),
        ([_sent(1), _sent(2, more="other")], 1, "2 bodies"),
        ([_sent(1), _sent(2, "msg_2")], 0, "2 ids"),
    ],
)
def test_redeliveries_are_counted_and_must_be_identical(requests: list[Received], again: int, why: str) -> None:
    found, faults = told_once(requests)

    assert found == again
    assert (why in "; ".join(faults)) if why else faults == []


def _lines(*names: str) -> list[dict[str, Any]]:
    return [{"custom_id": name, "error": {"code": "engine_error"}} for name in names]


@pytest.mark.parametrize(
    ("status", "output", "errors", "right"),
    [
        ("completed", ("r0", "r1", "r3"), ("r2",), True),
        ("failed", ("r0", "r1", "r3"), ("r2",), False),
        ("completed", ("r0", "r1"), ("r2",), False),
        ("completed", ("r0", "r1", "r3", "r3"), ("r2",), False),
        ("completed", ("r0", "r1", "r3"), ("r2", "r3"), False),
        ("completed", ("r0", "r1", "r2", "r3"), (), False),
    ],
)
def test_poisoned_batch_must_fail_poisoned_line_and_answer_others_once(
    status: str, output: Sequence[str], errors: Sequence[str], right: bool
) -> None:
    assert (poisoned(4, {"status": status}, _lines(*output), _lines(*errors)) == []) == right


def test_missing_results_of_finished_work_in_a_copy_are_reported(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    for name in (".partial-1", "file-1"):
        (tmp_path / "files" / name).symlink_to("gone")
    (tmp_path / "to" / "files" / "file-1").mkdir(parents=True)
    (tmp_path / "to" / "files" / ".partial-1").mkdir()

    missed = copied(tmp_path / "files", tmp_path / "to")

    assert len(missed) == 1
    assert "file-1" in missed[0]


def _result(job: oracle.Job, names: Sequence[str], input_tokens: int) -> oracle.Result:
    lines = [{"custom_id": n, "error": None, "response": {"body": _answer(job, n)}} for n in names]
    usage = {"input_tokens": input_tokens, "output_tokens": 0, "total_tokens": input_tokens}
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    facts = {"id": "batch_1", "object": "batch", "endpoint": job.endpoint, "status": "completed", "created_at": 1}
    facts |= {"completion_window": "24h", "input_file_id": "file-1", "usage": usage | details}
    counts = {"total": len(job.prompts), "completed": len(names), "failed": 0}
    return oracle.Result(Batch.model_validate(facts | {"request_counts": counts}), output=lines)


def _answer(job: oracle.Job, name: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(reply(job.endpoint, job.body(name), job.prompts[name]).body)
    return said


@pytest.mark.parametrize(
    ("names", "more", "why"),
    [
        (("r0", "r1"), 0, ""),
        (("r0",), 0, "1 lines missing"),
        (("r0", "r1", "r1"), 0, "1 lines more than once"),
        (("r0", "r1"), 1, "sum over lines"),
    ],
)
def test_a_known_batch_is_judged_line_by_line(names: Sequence[str], more: int, why: str) -> None:
    job = batch_of("small", 2)
    tokens = [_answer(job, name)["usage"] for name in names]
    found = _result(job, names, sum(one["prompt_tokens"] for one in tokens) + more)
    assert found.batch.usage is not None
    found.batch.usage.output_tokens = sum(one["completion_tokens"] for one in tokens)
    found.batch.usage.total_tokens = found.batch.usage.input_tokens + found.batch.usage.output_tokens

    faults = unlike(job, found)

    assert (why in "; ".join(faults)) if why else faults == []


def test_older_version_is_last_tag_or_commit_before_newest_migration(tmp_path: Path) -> None:
    versions = tmp_path / "migrations" / "versions"
    versions.mkdir(parents=True)
    (versions / "0001_first.py").touch()
    with pytest.raises(NoOldVersion, match="no clone"):
        older_commit(tmp_path)

    def git(*words: str) -> str:
        said = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *said, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    with pytest.raises(NoOldVersion, match="nothing before it"):
        older_commit(tmp_path)
    first = git("rev-parse", "HEAD")
    (versions / "0002_second.py").touch()
    git("add", ".")
    git("commit", "-qm", "two")
    git("commit", "-qm", "three", "--allow-empty")

    assert older_commit(tmp_path) == first

    for names in (["0003_one.py", "0003_other.py"], ["0004_last.py"]):
        for name in names:
            (versions / name).touch()
        git("add", ".")
        git("commit", "-qm", names[0])
    third = git("rev-parse", "HEAD~2")
    assert older_commit(tmp_path) == third, "the commit between has two branches of migrations, and does not start"

    git("tag", "v0.1.0", "HEAD^")
    git("tag", "v0.2.0")  # of what is tested here
    assert older_commit(tmp_path) == git("rev-parse", "v0.1.0")


@pytest.mark.parametrize(("again", "losses", "right"), [(0, 0, True), (1, 0, False), (32, 1, True), (33, 1, False)])
def test_repeated_shard_requests_are_allowed_only_after_lost_lease(again: int, losses: int, right: bool) -> None:
    outcome = Outcome("a dose")
    asked_twice(outcome, ["Count"] * (10 + again) + ["Tell a1"] * 2, 10, losses)

    assert (outcome.violations == []) == right


def test_a_figure_over_its_bound_is_a_violation_and_stands_in_the_row() -> None:
    outcome = Outcome("a dose")
    outcome.at_most("waits", 1.0, 2.0, " s")
    outcome.at_most("repeats", 3, 2)

    assert outcome.violations == ["repeats 3 is more than 2"]
    assert "| F0 | a dose | waits 1 s (≤ 2 s); repeats 3 (≤ 2) | 1 |" in row("F0", outcome, 1)


def test_a_dose_that_can_not_be_given_is_a_violation_and_others_are_given_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given: list[Given] = []

    def fails(_: Given) -> Outcome:
        raise TimeoutError("never up")

    def passes(one: Given) -> Outcome:
        given.append(one)
        return Outcome("all of it")

    monkeypatch.setattr(command, "DOSES", {"A": fails, "B": passes})

    assert command.main(["--share", "0.5", "--keep", str(tmp_path)]) == 1
    assert command.main(["B"]) == 0
    assert "TimeoutError: never up" in capsys.readouterr().out
    assert [one.part(5) for one in given] == [2, 5]
