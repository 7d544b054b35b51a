"""Requests that schemathesis derives from the OpenAPI document, sent to every operation: all answers as documented.

Half of the requests are about objects that exist, made anew for each round, since some of them are deleted.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, seed, settings, strategies
from schemathesis import checks
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks as openapi_checks

from api.http.middleware import OPEN
from tests.badinputs.auth import planted
from tests.badinputs.case import Case
from tests.badinputs.world import World

AREA = "Fuzz"
REQUESTS, FEW = 10_000, 200
_AT_ONCE = 25  # of an operation, in a round
_SECONDS = 60.0
_TRUE = (
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
)
#: Nobody works for who waits here, and there is no Redis: these say so.
_NOBODY = frozenset({"no_worker", "sandbox_unknown", "streams_unavailable"})


class _Fuzz:
    """Sends until it has sent enough."""

    def __init__(self, world: World, enough: int) -> None:
        self.world, self.enough = world, enough
        self.document = schemathesis.openapi.from_url(f"{world.url}/openapi.json")
        self.sent = 0
        self.wrong: Counter[str] = Counter()
        self.real: dict[str, str] = {}

    def all(self) -> str:
        operations = [(path, method) for path in self.document for method in self.document[path] if path not in OPEN]
        rounds = 0
        while self.sent < self.enough:
            self.real = planted(self.world)
            self.real |= {"input_file_id": self.real["file_id"], "model": "all-minilm-l6-v2"}
            for path, method in operations:
                if self.sent < self.enough:
                    self._operation(path, method, rounds)
            rounds += 1
        told = ", ".join(f"{count} x {what}" for what, count in sorted(self.wrong.items()))
        return told or "as it says, none 5xx"

    def _operation(self, path: str, method: str, number: int) -> None:
        most = min(_AT_ONCE if self.world.full else 2, self.enough - self.sent)

        @seed(number)
        @given(case=self.document[path][method].as_strategy(), about_real=strategies.booleans())
        @settings(max_examples=most, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def send(case: schemathesis.Case, about_real: bool) -> None:
            if about_real:
                for ids in (case.path_parameters, case.body if isinstance(case.body, dict) else {}):
                    ids.update({name: self.real[name] for name in ids if name in self.real})
            if self.sent < self.enough:
                self._send(case, f"{method.upper()} {path}")

        send()

    def _send(self, case: schemathesis.Case, name: str) -> None:
        headers = {"Authorization": f"Bearer {self.world.key}"}
        answer = case.call(base_url=self.world.url, headers=headers, timeout=_SECONDS)
        self.sent += 1
        code = _code(answer)
        nobody = answer.status_code == 503 and code in _NOBODY
        self.world.noted.append((200 if nobody else answer.status_code, answer.elapsed))
        if answer.status_code >= 500 and not nobody:
            self.wrong[f"{name}: {answer.status_code} {code}"] += 1
        excluded = [checks.not_a_server_error]
        if str(answer.headers.get("content-type", [""])[0]).partition(";")[0] != "application/json":
            excluded.append(openapi_checks.response_schema_conformance)  # a single line of JSONL would count as JSON
        try:
            case.validate_response(answer, checks=_TRUE, excluded_checks=excluded)
        except FailureGroup as failures:
            self.wrong[f"{name}: {failures.exceptions[0].title}"] += 1


def _code(answer: Any) -> str:
    try:
        return str(answer.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return ""


def fuzzed(world: World) -> str:
    return _Fuzz(world, REQUESTS if world.full else FEW).all()


def cases() -> Iterator[Case]:
    facts: dict[str, Any] = {"creates": True, "seconds": _SECONDS}
    yield Case(AREA, "10,000 requests made of the document", "as it says, none 5xx", fuzzed, **facts)
