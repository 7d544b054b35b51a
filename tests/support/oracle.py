"""Judge a deployment from outside, through HTTP alone: what must be true whatever was done to it.

    I1 terminal    each batch that was accepted ends
    I2 complete    each custom_id exactly once over output and error file, each with the answer to its own prompt
    I3 once        counts = lines, usage = sum over lines, one batch per key, one event per end of a batch
    I4 rework      what the engine was asked twice, against what the faults allow
    I5 monotone    what was polled never goes back, and never changes once it is terminal
    I7 audit       the chain holds
    I8 in order    a batch that waits for others runs if all of them completed, and else fails without having run
    webhooks       each end told at least once, signed, under one webhook-id
    leftovers      no process after the stop

Each function returns violations in words; an empty list is a pass. `I6`, no zombie's write, shows in I2 and I3.
"""

import json
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import isclose
from typing import Any

from openai import OpenAI
from openai.types import Batch
from openai.types.responses import Response

from tests.support.fake_engine import reply
from tests.support.receiver import Received
from tests.support.stub_engine import MARK

Line = dict[str, Any]

RANK = {"validating": 0, "in_progress": 1, "finalizing": 2, "cancelling": 2}
TERMINAL = frozenset({"completed", "failed", "expired", "cancelled"})
#: The same of a response in the background, and how far each status is from its beginning.
ANSWERED = frozenset({"completed", "failed", "incomplete", "cancelled"})
_RESPONSE_RANK = {"queued": 0, "in_progress": 1}
_COUNTED = ("completed", "failed")
#: Tokens of an answer, as each endpoint names them.
_INPUT, _OUTPUT = ("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")
#: What a poisonous prompt comes to; other prompts are answered.
POISON = ("!crash", "!reset", "!hang", "!html", "!500")
#: What the dispatcher asks an alias that it has rolled back.
PROBE = "Hello"
_FLOAT32 = 1e-6  # what its rounding takes from a number of a vector, at most
_UNRUN = frozenset({"batch_cancelled", "batch_expired"})


@dataclass(slots=True)
class Job:
    """A batch as its client knows it: what was asked, under which key, and what may become of it."""

    key: str
    endpoint: str
    model: str
    prompts: dict[str, str]  # by custom_id
    batch_id: str = ""
    cancelled: bool = False
    webhook_path: str = ""
    secret: str = ""
    judged: bool = True  # whether the answers can be known beforehand
    after: list["Job"] = field(default_factory=list)  # the batches that it waits for

    def body(self, custom_id: str) -> Line:
        prompt = self.prompts[custom_id]
        if self.endpoint == "/v1/chat/completions":
            return {"model": self.model, "max_tokens": 16, "messages": [{"role": "user", "content": prompt}]}
        if self.endpoint == "/v1/completions":
            return {"model": self.model, "max_tokens": 16, "prompt": prompt}
        few = {"max_output_tokens": 16} if self.endpoint == "/v1/responses" else {}
        return {"model": self.model, "input": prompt, **few}

    def jsonl(self) -> bytes:
        lines = (
            {"custom_id": custom_id, "method": "POST", "url": self.endpoint, "body": self.body(custom_id)}
            for custom_id in self.prompts
        )
        return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@dataclass(slots=True)
class Asked:
    """A response in the background as its client knows it."""

    key: str
    model: str
    prompt: str
    id: str = ""
    cancelled: bool = False
    judged: bool = True

    def expected(self) -> Line:
        body = {"model": self.model, "input": [{"role": "user", "content": self.prompt}]}
        found: Line = json.loads(reply("/v1/responses", body, self.prompt).body)
        return found


@dataclass(slots=True)
class Result:
    """Hold an ended batch as the server shows it, and the lines of its files."""

    batch: Batch
    output: list[Line] = field(default_factory=list)
    errors: list[Line] = field(default_factory=list)

    @property
    def lines(self) -> list[Line]:
        return self.output + self.errors


@dataclass(frozen=True, slots=True)
class Told:
    """Hold a webhook whose signature was right."""

    path: str
    webhook_id: str
    id: str
    type: str
    subject: str


def verified(request: Received, secret: str) -> Told:
    """Verify a request within five minutes of its arrival. Raises WebhookVerificationError."""
    event: Any = request.verify(secret)
    return Told(request.path, request.webhook_id, event["id"], event["type"], event["data"]["id"])


def fetch(client: OpenAI, batch_id: str) -> Result:
    batch = client.batches.retrieve(batch_id)
    return Result(batch, _content(client, batch.output_file_id), _content(client, batch.error_file_id))


def _content(client: OpenAI, file_id: str | None) -> list[Line]:
    if file_id is None:
        return []
    return [json.loads(line) for line in client.files.content(file_id).content.splitlines()]


def complete(job: Job, result: Result) -> list[str]:
    """I2."""
    if is_dependency_failure(result.batch):
        return [f"{job.key}: has lines, though it was never to run"] if result.lines else []
    found = Counter(line["custom_id"] for line in result.lines)
    faults = [
        _say(job, "lines missing", [name for name in job.prompts if name not in found]),
        _say(job, "lines more than once", [name for name, times in found.items() if times > 1]),
        _say(job, "lines nobody asked for", [name for name in found if name not in job.prompts]),
    ]
    if job.judged:
        faults.append(_say(job, "lines with another's answer", _wrong_answers(job, result.output)))
    if not job.cancelled:
        faults.append(_say(job, "lines that should have failed", _spared(job, result.output)))
        faults.append(_say(job, "lines that should have been answered", _harmed(job, result.errors)))
    return [fault for fault in faults if fault]


def _wrong_answers(job: Job, lines: Iterable[Line]) -> list[str]:
    return [line["custom_id"] for line in lines if not _is_answer(job, line)]


def _is_answer(job: Job, line: Line) -> bool:
    prompt = job.prompts.get(line["custom_id"])
    if prompt is None:
        return False
    expected = json.loads(reply(job.endpoint, job.body(line["custom_id"]), prompt).body)
    said: Line = line["response"]["body"]
    if job.endpoint == "/v1/responses":
        return _is_completed(said, expected)
    return said == expected or (job.endpoint == "/v1/embeddings" and _same_vectors(said, expected))


def _is_completed(said: Any, expected: Any) -> bool:
    """Return whether a response has all that the engine answered: a worker adds the fields that OpenAI has besides."""
    if isinstance(expected, dict):
        return isinstance(said, dict) and all(_is_completed(said.get(name), expected[name]) for name in expected)
    if isinstance(expected, list):
        return (
            isinstance(said, list)
            and len(said) == len(expected)
            and all(_is_completed(*pair) for pair in zip(said, expected, strict=True))
        )
    return bool(said == expected)


def _same_vectors(said: Line, expected: Line) -> bool:
    """Compare vectors; a vector from the cache is a float32 where an attempt that had asked was interrupted."""
    bodies = (said, expected)
    rest = [{name: body[name] for name in body if name not in {"data", "usage"}} for body in bodies]
    asked = [{name: body["usage"][name] for name in ("prompt_tokens", "total_tokens")} for body in bodies]
    mine, theirs = ([one["embedding"] for one in body["data"]] for body in bodies)
    lengths = [[len(vector) for vector in vectors] for vectors in (mine, theirs)]
    return (rest[0], asked[0], lengths[0]) == (rest[1], asked[1], lengths[1]) and all(
        isclose(x, y, abs_tol=_FLOAT32)
        for one, other in zip(mine, theirs, strict=True)
        for x, y in zip(one, other, strict=True)
    )


def _spared(job: Job, lines: Iterable[Line]) -> list[str]:
    return [line["custom_id"] for line in lines if _poisonous(job.prompts.get(line["custom_id"], ""))]


def _harmed(job: Job, lines: Iterable[Line]) -> list[str]:
    harmed = [line for line in lines if not _poisonous(job.prompts.get(line["custom_id"], ""))]
    return [f"{line['custom_id']} ({line['error']})" for line in harmed]


def _poisonous(prompt: str) -> bool:
    return any(word in prompt for word in POISON)


def counted(job: Job, result: Result) -> list[str]:
    """I3: counts and usage."""
    if is_dependency_failure(result.batch):
        return []
    counts, unrun = result.batch.request_counts, [line for line in result.errors if _unrun(line)]
    assert counts is not None
    said = (counts.total, counts.completed, counts.failed)
    there = (len(job.prompts), len(result.output), len(result.errors) - len(unrun))
    faults = [] if said == there else [f"{job.key}: counts {said}, lines {there}"]
    return faults + _usage(job, result)


def _unrun(line: Line) -> bool:
    return bool(line["error"]) and line["error"]["code"] in _UNRUN


def _usage(job: Job, result: Result) -> list[str]:
    assert result.batch.usage is not None
    usages = [(line["response"] or {}).get("body", {}).get("usage") or {} for line in result.lines]
    summed = tuple(sum(_first(usage, names) for usage in usages) for names in (_INPUT, _OUTPUT))
    said = (result.batch.usage.input_tokens, result.batch.usage.output_tokens)
    faults = [] if said == summed else [f"{job.key}: usage {said}, sum over lines {summed}"]
    if result.batch.usage.total_tokens != sum(said):
        faults.append(f"{job.key}: total_tokens {result.batch.usage.total_tokens} is not {sum(said)}")
    return faults


def _first(usage: Line, names: tuple[str, ...]) -> int:
    return next((int(usage[name]) for name in names if usage.get(name) is not None), 0)


def ended(job: Job, result: Result) -> list[str]:
    """I1: terminal, in a state that this batch may end in."""
    may = {"completed", "cancelled"} if job.cancelled else {"completed"}
    may |= {"failed"} if is_dependency_failure(result.batch) else set()
    status = result.batch.status
    return [] if status in may else [f"{job.key}: {job.batch_id} is {status} ({result.batch.errors})"]


def in_order(job: Job, result: Result, status_of: Callable[[Job], str]) -> list[str]:
    """I8: whether what a batch waited for decided whether it ran."""
    unfinished = [one.key for one in job.after if status_of(one) != "completed"]
    ran = result.batch.in_progress_at is not None or bool(result.output)
    if unfinished and ran:
        return [f"{job.key}: ran, though {unfinished} did not complete"]
    if is_dependency_failure(result.batch) and not unfinished:
        return [f"{job.key}: failed for {[one.key for one in job.after]}, which completed"]
    return []


def is_dependency_failure(batch: Batch) -> bool:
    """Return whether a batch failed because one that it waited for did not complete."""
    errors = (batch.errors.data or []) if batch.errors else []
    return batch.status == "failed" and [error.code for error in errors] == ["dependency_failed"]


def once(client: OpenAI, jobs: Sequence[Job], others: Sequence[str] = ()) -> list[str]:
    """I3: one batch per key, and none that nobody asked for. `others` are keys of batches that are no `Job`."""
    keys = [*(job.key for job in jobs), *others]
    found = Counter((batch.metadata or {}).get("key") for batch in client.batches.list(limit=100))
    faults = [f"{key}: {found[key]} batches for one key" for key in keys if found[key] != 1]
    strays = set(found) - set(keys)
    return faults + ([f"batches of unknown keys: {sorted(map(str, strays))}"] if strays else [])


def monotone(job: Job, polls: Sequence[Batch]) -> list[str]:
    """I5, over everything that was polled of one batch, oldest first."""
    faults = []
    for before, after in pairwise(polls):
        if before.status in TERMINAL and before != after:
            faults.append(f"{job.key}: changed after it was {before.status}: {before} → {after}")
        elif before.status not in TERMINAL and _went_back(before, after):
            faults.append(f"{job.key}: went back from {_shown(before)} to {_shown(after)}")
    return faults


def _went_back(before: Batch, after: Batch) -> bool:
    rank = RANK.get(after.status, 3)
    return rank < RANK[before.status] or any(
        getattr(after.request_counts, name) < getattr(before.request_counts, name) for name in _COUNTED
    )


def _shown(batch: Batch) -> str:
    counts = batch.request_counts
    return f"{batch.status} {counts.completed}+{counts.failed}" if counts else batch.status


def transitions(client: OpenAI, job: Job) -> list[str]:
    """I3, I7: one event per move, numbered without a gap, the last one the end."""
    events = client.get(f"/jobs/{job.batch_id}/events?limit=100", cast_to=object)
    assert isinstance(events, dict)
    found = [(event["seq"], event["type"]) for event in events["data"]]
    kinds = [kind for _, kind in found]
    faults = []
    if [seq for seq, _ in found] != list(range(1, len(found) + 1)) or len(set(kinds)) != len(kinds):
        faults.append(f"{job.key}: events {found}")
    if sum(kind.startswith("batch.") for kind in kinds) != 1 or not kinds[-1].startswith("batch."):
        faults.append(f"{job.key}: ends {kinds}")
    return faults


def told(job: Job, status: str, events: Sequence[Told]) -> list[str]:
    """At least one webhook about this batch at one receiver, all of them of one event and under one id."""
    kinds = {(event.webhook_id, event.id, event.type) for event in events if event.subject == job.batch_id}
    if not kinds:
        return [f"{job.key}: nobody was told that {job.batch_id} is {status}"]
    if len(kinds) > 1 or {kind for _, _, kind in kinds} != {f"batch.{status}"}:
        return [f"{job.key}: {status}, told as {sorted(kinds)}"]
    return []


def told_once(key: str, subject: str, status: str, event_type: str | None, hooks: Iterable[Told]) -> list[str]:
    """Return why the end of a job was not told as one event of this type, under one webhook-id."""
    kinds = {(hook.webhook_id, hook.id, hook.type) for hook in hooks if hook.subject == subject}
    if len(kinds) == 1 and {kind for _, _, kind in kinds} == {event_type}:
        return []
    return [f"{key}: {status}, told as {sorted(kinds)}"]


def answered(one: Asked, seen: Sequence[Response], events: Sequence[Told]) -> list[str]:
    """I1, I2, I3 and I5 of a response: it ends, with the answer to its own prompt, never goes back, and is told."""
    if not seen or seen[-1].status not in ANSWERED:
        return [f"{one.key}: {one.id} has not ended"]
    faults, last = _right(one, seen[-1]), seen[-1]
    for before, after in pairwise(seen):
        if before.status in ANSWERED or _far(after) < _far(before):
            faults.append(f"{one.key}: went from {before.status} to {after.status}")
    return faults + told_once(one.key, one.id, last.status, f"response.{last.status}", events)


def _right(one: Asked, last: Response) -> list[str]:
    """Check an answer. A real model may be cut off, and a cancelled request may have been answered before."""
    may = {"completed"} | ({"cancelled"} if one.cancelled else set()) | (set() if one.judged else {"incomplete"})
    if last.status not in may:
        return [f"{one.key}: {one.id} is {last.status} ({last.error})"]
    if last.status != "completed" or not one.judged:
        return []
    expected = one.expected()
    said = (last.output_text, last.usage.total_tokens if last.usage else None)
    due = (expected["output"][0]["content"][0]["text"], expected["usage"]["total_tokens"])
    return [] if said == due else [f"{one.key}: answered {said}, not {due}"]


def _far(shown: Response) -> int:
    return _RESPONSE_RANK.get(str(shown.status), 2)


def asked_once(keys: Sequence[str], asked: Sequence[Asked]) -> list[str]:
    """I3: one job per key, and none that nobody asked for."""
    found = Counter(keys)
    faults = [f"{one.key}: {found[one.key]} responses for one key" for one in asked if found[one.key] != 1]
    strays = set(found) - {one.key for one in asked}
    return faults + ([f"responses of unknown keys: {sorted(strays)}"] if strays else [])


def rework(prompts: Sequence[str]) -> int:
    """I4: how often the engine was asked what it had been asked before. Poison is tried again by design.

    Texts that were embedded together are not counted here: the log has marks of those.
    """
    counted = filter(is_counted, prompts)
    return sum(times - 1 for times in Counter(counted).values())


def is_counted(prompt: str) -> bool:
    """Return whether a prompt is to be asked once: it has no "!", and is no text's mark and no roll-back's probe."""
    return "!" not in prompt and not prompt.startswith(MARK) and prompt != PROBE


def embedded_again(prompts: Iterable[str], searched: Container[str]) -> int:
    """I4 of ingestions: texts that were embedded once more. Those of searches do not count."""
    texts = Counter(prompt for prompt in prompts if prompt.startswith(MARK) and prompt not in searched)
    return texts.total() - len(texts)


def _say(job: Job, what: str, names: Sequence[str]) -> str:
    return f"{job.key}: {len(names)} {what}: {', '.join(names[:5])}" if names else ""
