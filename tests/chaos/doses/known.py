"""A load of batches whose every line is known, so that the results of each can be judged.

Known     creates them, also at a steady rate; `answers` are the outcomes of its creates
unlike    the faults of a batch: no end or a wrong one, lines lost, twice or with another's answer, wrong sums
"""

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx2
from openai import OpenAI

from tests.chaos.doses.deployment import CHAT, Answer, Site
from tests.support import oracle
from tests.support.system import MODEL, pause

_CREATE_SECONDS = 60.0
_AT_ONCE = 8


def batch_of(key: str, lines: int) -> oracle.Job:
    return oracle.Job(key, CHAT, MODEL, {f"r{n}": f"Say {key} {n}" for n in range(lines)})


@dataclass(slots=True)
class Known:
    """`ports`: of the processes that take its creates, by turns."""

    site: Site
    ports: Sequence[int]
    jobs: dict[str, oracle.Job] = field(default_factory=dict)  # by key
    files: dict[str, str] = field(default_factory=dict)  # their ids, by key
    answers: list[Answer] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def post(self, key: str, lines: int) -> Answer:
        """Create one batch with its file; the worse of both answers counts."""
        job = self.jobs[key] = batch_of(key, lines)
        answer = self._create(job, self.ports[len(self.jobs) % len(self.ports)])
        self.answers.append(answer)
        return answer

    def post_all(self, batches: Iterable[tuple[str, int]]) -> None:
        """Several at a time."""
        due, taking = iter(batches), threading.Lock()

        def work() -> None:
            while True:
                with taking:
                    batch = next(due, None)
                if batch is None:
                    return
                self.post(*batch)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(_AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    @contextmanager
    def going_on(self, rate: float, lines: Sequence[int]) -> Iterator[None]:
        """Meanwhile small batches of so many lines, by turns."""
        feeder = threading.Thread(target=self._feed, args=(rate, lines), daemon=True)
        feeder.start()
        try:
            yield
        finally:
            self._stop.set()
            feeder.join(2 * _CREATE_SECONDS)

    def again(self, site: Site, keys: Iterable[str]) -> list[Answer]:
        """Repeat the same creates at another deployment that has their files."""
        return [site.batch(self.files[key], key) for key in keys]

    def _feed(self, rate: float, lines: Sequence[int]) -> None:
        began, count = time.monotonic(), 0
        while not self._stop.is_set():
            self.post(f"small-{count:05d}", lines[count % len(lines)])
            count += 1
            pause(max(0.0, began + count / rate - time.monotonic()))

    def _create(self, job: oracle.Job, port: int) -> Answer:
        began, files = time.monotonic(), {"file": (f"{job.key}.jsonl", job.jsonl())}
        try:
            said = self.site.http.post(self.site.url("files", port), files=files, data={"purpose": "batch"})
        except httpx2.HTTPError as error:
            return Answer(job.key, 0, time.monotonic() - began, told=f"upload: {type(error).__name__} {error}")
        if said.status_code != 200:
            took, told = time.monotonic() - began, f"upload: {said.text[:300]}"
            return Answer(job.key, said.status_code, took, retry_after=said.headers.get("retry-after", ""), told=told)
        self.files[job.key] = str(said.json()["id"])
        return self.site.batch(self.files[job.key], job.key, port, _CREATE_SECONDS)


@contextmanager
def asking(site: Site) -> Iterator[OpenAI]:
    with OpenAI(base_url=site.url("")[:-1], api_key=site.system.api_key, max_retries=8) as client:
        yield client


def unlike(job: oracle.Job, result: oracle.Result) -> list[str]:
    faults = oracle.ended(job, result) + oracle.complete(job, result)
    return faults + (oracle.counted(job, result) if result.batch.usage else [f"{job.key}: has no usage"])


def all_unlike(site: Site, jobs: Iterable[tuple[oracle.Job, str]]) -> list[str]:
    """Return how batches differ from what they should be, given their ids."""
    faults: list[str] = []
    with asking(site) as client:
        for job, batch_id in jobs:
            job.batch_id = batch_id
            faults += unlike(job, oracle.fetch(client, batch_id))
    return faults
