"""Every bad input, area by area."""

from tests.badinputs import auth, contexts, files, json_bodies, jsonl, races, tampering, urls, wire
from tests.badinputs.case import Case

AREAS = (json_bodies, wire, jsonl, contexts, files, urls, auth, races, tampering)
CASES: tuple[Case, ...] = tuple(case for area in AREAS for case in area.cases())
