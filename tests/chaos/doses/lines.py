"""Doses for the lines of a batch.

F13  an engine that answers as no engine should, in each way: the line fails with its reason, others go on
F14  one poisonous line among ten thousand
F18  cancelled at a random moment
"""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tests.chaos.doses.deployment import Site, line, site
from tests.chaos.doses.dose import Given, Outcome
from tests.support.system import pause, wait_for
from workers.runtime.answering import MAX_TRIES

_KINDS = ("!crash", "!reset", "!hang", "!html", "!500", "!huge")
_CRASHES = 4
_POISON_SECONDS = 180.0
_CANCEL_SECONDS = 6.0
_LINES = 600
_END_SECONDS = 90.0
TERMINAL = frozenset({"completed", "failed", "expired", "cancelled"})


def batch_of(lines: int, name: str, poison: str = "") -> bytes:
    """Create a batch whose middle line is the poisonous one."""
    words = [f"Say {name} {n}" + (f" {poison}" if poison and n == lines // 2 else "") for n in range(lines)]
    return b"".join(line(f"r{n}", word) for n, word in enumerate(words))


def _await(made: Site, batch: str, seconds: float) -> dict[str, Any]:
    found: list[dict[str, Any]] = []

    def ended() -> bool:
        found[:] = [made.get(f"batches/{batch}")]
        return found[0]["status"] in TERMINAL

    wait_for(ended, seconds, f"{batch} ends", every=0.2)
    return found[0]


def _lines(made: Site, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    said = made.http.get(made.url(f"files/{file_id}/content"))
    said.raise_for_status()
    return [json.loads(one) for one in said.content.splitlines()]


def poisoned(lines: int, batch: Mapping[str, Any], output: Sequence[Any], errors: Sequence[Any]) -> list[str]:
    """Judge that all lines but the middle one are answered once, and that this one has failed with a reason."""
    names, due = Counter(one["custom_id"] for one in output), {f"r{n}" for n in range(lines)} - {f"r{lines // 2}"}
    faults = [] if batch["status"] == "completed" else [f"it is {batch['status']}"]
    if names.keys() != due or names.total() != len(due):
        faults.append(f"{names.total()} lines of {len(names)} names are answered, {len(due)} should be")
    failed = [(one["custom_id"], bool(one.get("error") or one.get("response"))) for one in errors]
    if failed != [(f"r{lines // 2}", True)]:
        faults.append(f"failed are {failed[:3]}, {len(failed)} in all")
    return faults


def _poison(outcome: Outcome, made: Site, lines: int, name: str, word: str) -> float:
    """Run one batch with it; return its seconds."""
    ends, began = made.engine.ends, time.monotonic()
    file_id = made.upload(batch_of(lines, name, word))
    batch = _await(made, made.batch(file_id, name).job, _POISON_SECONDS * 2)
    output, errors = (_lines(made, batch[f"{which}_file_id"]) for which in ("output", "error"))
    outcome.violations += [f"{name}: {why}" for why in poisoned(lines, batch, output, errors)]
    if (crashes := made.engine.ends - ends) > _CRASHES:
        outcome.violations.append(f"{name}: the engine crashed {crashes} times")
    return time.monotonic() - began


def poisonous_line(given: Given) -> Outcome:
    times, lines = given.part(5), 10_000
    outcome = Outcome(f"a line that crashes the engine among {lines:,}, {times} times")
    with site(given) as made:
        took = [_poison(outcome, made, lines, f"poison-{n}", "!crash") for n in range(times)]
        outcome.judge(f"{lines - 1:,} answers and 1 error each, at most {_CRASHES} crashes")
        outcome.judge(f"worst {max(took):.0f} s; {made.engine.ends} crashes in all")
    return outcome


def broken_answers(given: Given) -> Outcome:
    """I10: beside them a batch of harmless lines ends."""
    times = given.part(3)
    outcome = Outcome(f"{', '.join(_KINDS)}: {times} times each, beside harmless batches")
    with site(given) as made:
        worst: dict[str, float] = {}
        for kind in _KINDS:
            for n in range(times):
                name = f"kind-{kind[1:]}-{n}"
                beside = made.batch(made.upload(batch_of(200, f"beside {name}")), f"beside-{name}").job
                worst[kind] = max(worst.get(kind, 0), _poison(outcome, made, 200, name, kind))
                if (state := _await(made, beside, _END_SECONDS)["status"]) != "completed":
                    outcome.violations.append(f"{name}: the harmless batch beside it is {state}")
        outcome.judge("the line fails with its reason, all others are answered, those of a batch beside too")
        for kind, seconds in worst.items():
            outcome.at_most(f"{kind} ends after, worst", seconds, _POISON_SECONDS, " s")
        outcome.judge(f"asked at most {MAX_TRIES} times, {_CRASHES} by a crash", *asked_too_often(made.prompts()))
    return outcome


def asked_too_often(prompts: Sequence[str]) -> list[str]:
    times = Counter(prompt for prompt in prompts if any(word in prompt for word in _KINDS))
    most = {prompt: _CRASHES if "!crash" in prompt else MAX_TRIES for prompt in times}
    return [f"{prompt!r} was asked {count} times" for prompt, count in times.items() if count > most[prompt]]


# -- F18


def cancelled(given: Given) -> Outcome:
    """Cancel batches at random moments; submit every third again afterwards."""
    times = given.part(300)
    outcome = Outcome(f"cancelled at a random moment, {times} times")
    ends, waits = Counter[str](), list[float]()
    with site(given, delay_ms=20) as made:
        file_id = made.upload(batch_of(_LINES, "cancel"))
        for n in range(times):
            status, seconds = _cancel(given, outcome, made, file_id, n)
            ends[status] += 1
            waits += [seconds] if status == "cancelled" else []
    outcome.judge(f"ends {dict(ends)}", *wrong_ends(ends))
    outcome.at_most("cancelled after, worst", max(waits, default=0), _CANCEL_SECONDS, " s")
    outcome.judge("one event of its end, and none of another; submitted again it completes")
    return outcome


def wrong_ends(ends: Mapping[str, int]) -> list[str]:
    others = {end: count for end, count in ends.items() if end not in {"cancelled", "completed"}}
    return [f"ended otherwise: {others}"] if others else []


def _cancel(given: Given, outcome: Outcome, made: Site, file_id: str, n: int) -> tuple[str, float]:
    batch = made.batch(file_id, f"cancel-{n:04d}").job
    pause(given.rng.uniform(0, 2))
    began = time.monotonic()
    said = made.http.post(made.url(f"batches/{batch}/cancel"))
    if said.status_code not in {200, 409}:
        outcome.violations.append(f"{batch}: the cancel was answered with {said.status_code} {said.text[:200]}")
    end = str(_await(made, batch, _END_SECONDS)["status"])
    took = time.monotonic() - began
    outcome.violations += one_end(batch, end, [one["type"] for one in made.get(f"jobs/{batch}/events")["data"]])
    if n % 3 == 0:
        again = made.batch(file_id, f"again-{n:04d}").job
        if (status := _await(made, again, _END_SECONDS)["status"]) != "completed":
            outcome.violations.append(f"submitted again, {again} is {status}")
    return end, took


def one_end(batch: str, end: str, events: Sequence[str]) -> list[str]:
    told = [kind for kind in events if kind in {f"batch.{status}" for status in TERMINAL}]
    return [] if told == [f"batch.{end}"] else [f"{batch} is {end}, and its events say {told}"]
