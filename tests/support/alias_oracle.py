"""Judge, after a run, aliases that were moved while clients asked them.

    answers      each is made by one model, the one that it and its header name, of a routing that stood meanwhile
    moves        each that was acknowledged is made once, in its order; the last one stands
    audit        a row for each move, which says who made it and for which promotion
    events       one for each move, and one for each roll-back once the restored model has answered
    promotions   the moves that name one are those of promotions that ended as promoted, each once
    batches      each line is answered by the one model that the batch names

Each function yields violations in words.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from math import inf
from typing import Any, NamedTuple

from jobs.registry.aliases import MOVED, ROLLED_BACK
from tests.support.fake_engine import VOICE, reply
from tests.support.oracle import Result
from tests.support.stub_engine import BROKEN, CANARY
from tests.support.system import BROKEN_MODEL, CACHED_MODEL, CANARY_MODEL, MODEL
from workers.dispatcher.rollbacks import MIN_REQUESTS

CHAT = "/v1/chat/completions"
DISPATCHER = "dispatcher"
#: The name that each model has on its server, which its answers have.
SERVED = {MODEL: MODEL, CACHED_MODEL: MODEL, CANARY_MODEL: CANARY, BROKEN_MODEL: BROKEN}
_AUDITED = {"create": "alias.create", "update": "alias.update", "revert": "alias.update", "rollback": "alias.rollback"}


class RoutedAnswer(NamedTuple):
    """An answer to a request for an alias.

    `models` are those that the answer, or the chunks of a stream, name, by their names on the server. `text` is None
    for an error and for a stream that was cut short.
    """

    prompt: str
    began: float
    ended: float
    header: str | None
    models: frozenset[str]
    text: str | None


class SeenMove(NamedTuple):
    """A move as a client saw it: made after `earliest`, by `latest`. `models` are the targets after it."""

    id: str
    action: str
    models: frozenset[str]
    earliest: float
    latest: float


class MoveRow(NamedTuple):
    """A move as it is stored.

    `events` are the types of its events in their order. `least` is the fewest requests that a roll-back compared.
    """

    id: str
    action: str
    actor: str
    reason: str | None
    model: str
    promotion: str | None
    events: Sequence[str]
    least: int = 0


class AuditRow(NamedTuple):
    """An audit row of an alias: who did what, which model the alias has since, and for which promotion."""

    action: str
    actor: str
    model: str
    promotion: str | None


def text_of(prompt: str, model: str) -> str:
    """Return what a model of the stub answers in a chat."""
    voice = CANARY if model == CANARY_MODEL else VOICE
    body = json.loads(reply(CHAT, {"model": model}, prompt, voice).body)
    return str(body["choices"][0]["message"]["content"])


# ── answers ──


def wrong_answers(answers: Iterable[RoutedAnswer], moves: Sequence[SeenMove], lag: float) -> Iterator[str]:
    """Yield the answers of other models than one of a routing that stood; processes follow a move within `lag`."""
    for answer in answers:
        name = str(answer.header)
        if not answer.models <= {SERVED.get(name)}:
            yield f"{answer.prompt}: the header names {name}, and the answer {sorted(answer.models)}"
        elif name not in (permitted := models_between(moves, answer.began, answer.ended, lag)):
            yield f"{answer.prompt}: answered by {name}, while the alias stood for {sorted(permitted)}"
        elif answer.text is not None and answer.text != text_of(answer.prompt, name):
            yield f"{answer.prompt}: names {name}, and has the text {answer.text!r} of another model"


def models_between(moves: Sequence[SeenMove], began: float, ended: float, lag: float) -> set[str]:
    """Return the targets of all routings that may have stood for a process at some moment between two times."""
    ends = [*(move.latest + lag for move in moves[1:]), inf]
    stood = (move for move, end in zip(moves, ends, strict=True) if move.earliest <= ended and began <= end)
    return {model for move in stood for model in move.models}


# ── moves ──


def wrong_moves(alias: str, rows: Sequence[MoveRow], acknowledged: Sequence[str], model: str) -> Iterator[str]:
    """Yield what is wrong with the moves of an alias whose clients give each move a reason of its own.

    `acknowledged` are the reasons of the moves of clients in their order, `model` is what the alias stands for.
    """
    made = [row.reason for row in rows if row.actor != DISPATCHER and row.promotion is None]
    counts = Counter(made)
    for reason in acknowledged:
        if counts[reason] != 1:
            yield f"{alias}: the move {reason} was acknowledged, and made {counts[reason]} times"
    if strays := [reason for reason in made if reason not in acknowledged]:
        yield f"{alias}: the moves {strays} were made, and nobody has asked for them"
    elif made != list(acknowledged):
        yield f"{alias}: the moves {acknowledged} were made as {made}"
    if rows and rows[-1].model != model:
        yield f"{alias}: stands for {model}, and its last move for {rows[-1].model}"


def wrong_rollbacks(alias: str, rows: Sequence[MoveRow]) -> Iterator[str]:
    """Yield roll-backs that another one than the dispatcher made, or too early, and other moves that it made."""
    for row in rows:
        if (row.action == "rollback") != (row.actor == DISPATCHER):
            yield f"{alias}: {row.actor} has made the move {row.id}, a {row.action}"
        if row.action == "rollback" and row.least < MIN_REQUESTS:
            yield f"{alias}: {row.id} rolled back after {row.least} requests of one side"


def unaudited_moves(alias: str, rows: Sequence[MoveRow], audits: Sequence[AuditRow]) -> Iterator[str]:
    """Yield where the audit log does not have each move in its order, with who made it and for which promotion."""
    due = [AuditRow(_AUDITED[row.action], row.actor, row.model, row.promotion) for row in rows]
    for number, (expected, audited) in enumerate(zip_longest(due, audits)):
        if expected != audited:
            yield f"{alias}: move {number} is {expected}, and its audit row {audited}"
            return


def untold_moves(alias: str, rows: Sequence[MoveRow], awaited: Iterable[str], probes: int) -> Iterator[str]:
    """Yield the moves without their events, and roll-backs that are called complete with fewer answered probes.

    `awaited` are the roll-backs behind which no client moved the alias before they were complete.
    """
    confirmed = 0
    for row in rows:
        told = list(row.events)
        may_end = row.action == "rollback"
        if told != [MOVED] and not (may_end and told == [MOVED, ROLLED_BACK]):
            yield f"{alias}: the move {row.id}, a {row.action}, has the events {told}"
        confirmed += ROLLED_BACK in told
        if row.id in awaited and ROLLED_BACK not in told:
            yield f"{alias}: the roll-back {row.id} was never complete"
    if confirmed > probes:
        yield f"{alias}: {confirmed} roll-backs are complete, and the engine was asked by {probes} probes"


# ── promotions ──


def wrong_promotions(ends: Mapping[str, str], moved: Sequence[str]) -> Iterator[str]:
    """Yield promotions whose moves do not fit their ends: `ends` by id, and the id of the promotion of each move."""
    counts = Counter(moved)
    for promotion_id, status in ends.items():
        if counts[promotion_id] != (status == "promoted"):
            yield f"{promotion_id} is {status}, and has made {counts[promotion_id]} moves"
    if strays := sorted(counts.keys() - ends.keys()):
        yield f"moves of promotions that nobody has made: {strays}"


# ── batches ──


def wrong_lines(key: str, prompts: Mapping[str, str], result: Result, models: Iterable[str]) -> Iterator[str]:
    """Yield lines of a batch for an alias that are not there once, answered by the one model that the batch names."""
    resolved = (result.batch.model_extra or {}).get("resolved_model")
    if resolved not in set(models):
        yield f"{key}: the batch was answered by {resolved}, which its alias never stood for"
        return
    if result.errors or sorted(line["custom_id"] for line in result.output) != sorted(prompts):
        names = [line["custom_id"] for line in result.lines]
        yield f"{key}: {len(names)} lines of {len(prompts)}, {len(result.errors)} of them errors"
    for line in result.output:
        body: Any = line["response"]["body"]
        answer = body["choices"][0]["message"]["content"]
        if (line.get("resolved_model"), body["model"]) != (resolved, SERVED[resolved]):
            names = f"{line.get('resolved_model')} and {body['model']}"
            yield f"{key}: {line['custom_id']} names {names}, the batch {resolved}"
        elif answer != text_of(prompts[line["custom_id"]], str(resolved)):
            yield f"{key}: {line['custom_id']} names {resolved}, and has the text {answer!r} of another model"
