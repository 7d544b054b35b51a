"""The list of all bad inputs by area."""

from tests.badinputs import (
    auth,
    console,
    contexts,
    deletion,
    documents,
    evaluations,
    files,
    fuzz,
    json_bodies,
    jsonl,
    races,
    sockets,
    sources,
    tampering,
    urls,
    wire,
)
from tests.badinputs.case import Case

AREAS = (
    json_bodies,
    wire,
    sockets,
    jsonl,
    contexts,
    files,
    documents,
    urls,
    sources,
    auth,
    console,
    races,
    tampering,
    deletion,
    evaluations,
    fuzz,
)
CASES: tuple[Case, ...] = tuple(case for area in AREAS for case in area.cases())
