"""Races of many clients: for one Idempotency-Key, and for the last tokens of a quota."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import func, select

from jobs.ledger import pauses
from jobs.ledger.tables import Job
from jobs.queues import Queue
from jobs.requests.token_estimates import BYTES_PER_TOKEN
from tests.badinputs.case import Case
from tests.badinputs.json_bodies import BATCH
from tests.badinputs.world import Asker, World, at_once, said
from tests.support.inline_deployment import chat_line
from tests.support.system import pause

AREA = "Idempotency"
CLIENTS = 100


def create(client: Asker, key: str, **changes: Any) -> Any:
    headers = {"Idempotency-Key": key}
    return patient(lambda: client.post("/v1/batches", json=BATCH | changes, headers=headers))


def patient(ask: Callable[[], Any]) -> Any:
    """Ask again, as the SDK does, when told that the database has too much to do."""
    answer = ask()
    for _ in range(5):
        if answer.status_code != 503:
            break
        pause(float(answer.headers["Retry-After"]))
        answer = ask()
    return answer


def jobs_of(world: World, key: str) -> int:
    with world.db.read() as session:
        return session.scalar(select(func.count()).select_from(Job).where(Job.idempotency_key == key)) or 0


def same(world: World) -> str:
    """Send one body a hundred times at once: each answer names the one job, or asks for a retry."""
    answers = at_once(CLIENTS, lambda _: create(world.client, "same"))
    others = {said(answer) for answer in answers} - {"200", "409 idempotency_key_in_use"}
    ids = {answer.json()["id"] for answer in answers if answer.status_code == 200}
    return f"{jobs_of(world, 'same')} job, {len(ids)} id{''.join(f', {other}' for other in sorted(others))}"


def different(world: World) -> str:
    """Send a hundred bodies at once under one key: one wins, the others hear that the key is taken."""
    answers = at_once(CLIENTS, lambda n: create(world.client, "different", priority=n - 50))
    return f"{jobs_of(world, 'different')} job, {_counted(said(answer) for answer in answers)}"


def uploads(world: World) -> str:
    """Upload the same file one hundred times at once, then once more."""

    def send(_: int) -> Any:
        files, headers = {"file": ("a.jsonl", b"x" * 10_000)}, {"Idempotency-Key": "upload"}
        form = {"files": files, "data": {"purpose": "batch"}}
        return patient(lambda: world.client.post("/v1/files", **form, headers=headers))

    before = world.created()
    answers = at_once(CLIENTS, send)
    others = {said(answer) for answer in answers} - {"200", "409 idempotency_key_in_use"}
    last, after = send(0), world.created()
    rows, stored = after["file"] - before["file"], after["stored"] - before["stored"]
    return f"{rows} file, {stored} stored, then {said(last)}{''.join(f', {other}' for other in sorted(others))}"


def other_body(world: World) -> str:
    return f"{said(create(world.client, 'body'))}, {said(create(world.client, 'body', priority=1))}"


def other_project(world: World) -> str:
    ours, theirs = create(world.client, "both"), create(world.stranger, "both", priority=1)
    return f"{said(ours)}, {said(theirs)}: {len({ours.json()['id'], theirs.json()['id']})} jobs"


def restarted(world: World) -> str:
    """Replace the web process by another one, which must still know the key."""
    first = create(world.client, "restart")
    world.restart_web()
    second, other = create(world.client, "restart"), create(world.client, "restart", priority=1)
    replayed = second.headers.get("Idempotency-Replayed")
    told = "the same answer" if first.text == second.text and replayed == "true" else "another answer"
    return f"{told}, {said(other)}, {jobs_of(world, 'restart')} job"


def of_length(world: World, length: int) -> str:
    """Create with a key of this length."""
    return said(create(world.client, "k" * length))


def quota(world: World) -> str:
    """Ten batches fit; a hundred clients come at once, while nothing is computed."""
    limit, each = 10_000, 1_000
    with world.db.write() as session:
        pauses.pause(session, pauses.Scope.QUEUE, Queue.GENERATE, actor="test")
    line = chat_line("a", "")
    line["body"]["messages"][0]["content"] = "x" * (each * BYTES_PER_TOKEN - len(json.dumps(line)) - 1)
    content = json.dumps(line).encode() + b"\n"
    assert len(content) == each * BYTES_PER_TOKEN
    file_id = world.upload(content).json()["id"]
    body = BATCH | {"input_file_id": file_id, "endpoint": "/v1/chat/completions"}
    made = at_once(CLIENTS, lambda _: patient(lambda: world.client.post("/v1/batches", json=body)).json()["id"])
    found: Counter[str] = Counter()

    def judged() -> bool:
        batches = world.client.get("/v1/batches", params={"limit": 100}).json()["data"]
        found.clear()
        found.update(_fate(one) for one in batches if one["id"] in made)
        return "validating" not in found

    world.eventually(judged, "all are planned", every=0.3)
    assert found.total() == CLIENTS
    fit = found.pop("in_progress", 0)
    return f"{fit} of {limit // each} accepted, the others {_names(found)}"


def _fate(batch: dict[str, Any]) -> str:
    return str(batch["errors"]["data"][0]["code"]) if batch["status"] == "failed" else str(batch["status"])


def _names(found: Counter[str]) -> str:
    return ", ".join(sorted(found))


def _counted(names: Iterator[str]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in sorted(Counter(names).items()))


def cases() -> Iterator[Case]:
    yield Case(AREA, "100 at once, one body", "1 job, 1 id", same, creates=True, seconds=10, storm=True)
    expected = "1 job, 1 x 200, 99 x 422 idempotency_key_mismatch"
    yield Case(AREA, "100 at once, each its own body", expected, different, creates=True, seconds=10, storm=True)
    yield Case(AREA, "100 uploads at once", "1 file, 1 stored, then 200", uploads, creates=True, seconds=10, storm=True)
    yield Case(AREA, "another body", "200, 422 idempotency_key_mismatch", other_body, creates=True)
    yield Case(AREA, "the same key of another project", "200, 200: 2 jobs", other_project, creates=True)
    expected = "the same answer, 422 idempotency_key_mismatch, 1 job"
    yield Case(AREA, "after a restart", expected, restarted, creates=True)
    for length, code in {0: "400 string_below_min_length", 256: "400 string_above_max_length"}.items():
        yield Case(AREA, f"a key of {length} characters", code, lambda w, length=length: of_length(w, length))
    yield Case(AREA, "a key of 255 characters", "200", lambda w: of_length(w, 255), creates=True)
    expected = "10 of 10 accepted, the others token_limit_exceeded"
    yield Case("Quota", "100 clients at the edge", expected, quota, creates=True, seconds=10, storm=True, world="quota")
