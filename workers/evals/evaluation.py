"""Jobs of kind `evaluation`: bring the cases of a run together, grade each, and count the results.

claim ─▶ cases, with samples and judgements ─▶ a file of lines, shards ─▶ planned
shard ─▶ each case: every criterion ─▶ an output item, in a segment         exactly once, as the lines of a batch
claim ─▶ the segments ─▶ results by criterion ─▶ closed
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final

import msgspec

from jobs.batches import lines
from jobs.batches.lines import Bad
from jobs.clock import now
from jobs.errors import StorageFull
from jobs.evals import runs
from jobs.evals.availability import ports_of
from jobs.evals.classification import Classification
from jobs.evals.graders import Grader
from jobs.evals.graders.base import Grade, GradingBudget, ModelAnswer, Ports
from jobs.evals.grading import grade, requests_of
from jobs.evals.runs import Evaluation
from jobs.ledger import shards
from jobs.ledger.ledger import JobClaim
from jobs.ledger.shards import ShardClaim
from jobs.queues import Queue
from jobs.requests.endpoints import CHAT
from workers.batches.finishing import outputs_of
from workers.batches.segments import SegmentRun
from workers.batches.shard_writer import ShardWriter
from workers.evals import shown
from workers.evals.cases import judged_cases, models_of
from workers.evals.item_sources import CaseRow, decode_row
from workers.evals.python_grader import PythonSandbox, RunStopped
from workers.evals.sampling import close
from workers.runtime import outcomes
from workers.runtime.context import Context
from workers.runtime.heartbeat import ClaimHandle
from workers.runtime.output_lines import LineRecord

log = logging.getLogger(__name__)
_CRASHED: Final = {"code": "worker_crashed", "message": "The worker died each time it graded this item."}
_SAMPLE: Final = {"code": "sample_error", "message": "There is no sample to grade."}

# ── planning ──


def plan(context: Context, claim: JobClaim, handle: ClaimHandle) -> None:
    """Bring the cases of the claimed run together, and let them be graded. Raises Abandoned, ClaimLost."""
    writer = ShardWriter(context, claim, handle, queue=Queue.EVALUATE)
    with writer.own_input():
        cases = judged_cases(context, claim.job)
        for line in lines.number_lines(
            case if isinstance(case, Bad) else msgspec.json.encode(case.row) for case in cases
        ):
            writer.add(line)
            if writer.is_full:
                break
    if writer.total > context.config.batch_max_lines:
        message = f"The run has more than {context.config.batch_max_lines} samples of items."
        writer.add(Bad("too_many_items", message, None, "data_source"))
    if not writer.total and not writer.errors:
        writer.add(Bad("empty_file", "The run has no items.", None, "data_source"))
    writer.finish()


# ── grading ──


class GradingRun(SegmentRun):
    """A claim on a shard of cases."""

    def __init__(self, context: Context, claim: ShardClaim, handle: ClaimHandle) -> None:
        super().__init__(context, claim, handle)
        self.payload = Evaluation.model_validate(claim.job.payload)
        self.graders = self.payload.graders
        self.sandbox = PythonSandbox(context.timings, lambda: handle.ended)
        self.ports = Ports()
        self.began = self.committed = time.monotonic()

    def run_lines(self) -> None:
        if self.context.low_on_disk():
            raise StorageFull
        self.ports = self._ports()
        with self.context.storage.reader(self.claim.job.input_path or "", self.claim.offset) as handle:
            texts = lines.split(handle.read(self.claim.length))
        with closing(self.sandbox), suppress(RunStopped):
            for line, raw in enumerate(texts):
                if self.claim.covered >> line & 1:
                    continue
                if self.handle.ended or self._is_long():
                    break
                self._grade(line, raw)
        self.close()

    def _ports(self) -> Ports:
        """Return what this process grades with; the embedding model is the one that was asked. Raises Abandoned."""
        run_python = partial(self.sandbox.run, self.claim.job.project_id)
        ports = ports_of(self.context.config, models_of(self.context), run_python)
        return replace(ports, embedding_model=self.payload.embedding_model)

    def _is_long(self) -> bool:
        """Return whether other tasks have waited long enough for this process."""
        return time.monotonic() - self.began > self.context.timings.grading_shift

    def _grade(self, line: int, raw: bytes) -> None:
        row = decode_row(raw)
        if row.kept:
            self.buffer.append(self._item_record(line, msgspec.json.decode(row.kept)))
            return
        if not self.is_isolated:
            self.buffer.append(self._record_of(line, row, self._results(row)))
            if time.monotonic() - self.committed > self.context.config.segment_seconds:
                self._commit()
            return
        if self.has_killed_workers(line):
            self.buffer.append(self._record_of(line, row, self._no_results(_CRASHED)))
        else:
            self.write(partial(shards.record_isolated_attempt, claim=self.claim, line=line))
            self.buffer.append(self._record_of(line, row, self._results(row)))
        self._commit()

    def _commit(self) -> None:
        self.committed = time.monotonic()
        self.commit()

    def _results(self, row: CaseRow) -> list[dict[str, Any]]:
        """Return the results of all criteria for a row. Raises: Stopped, where the run has ended meanwhile."""
        if row.results:
            return row.results
        if row.sample is None:
            return self._no_results(_SAMPLE)
        judgements, allowance = row.answers(), shown.Allowance()
        budget = GradingBudget(self.context.timings.item_grading, lambda: self.handle.ended)
        results = []
        for index, grader in enumerate(self.graders):
            answers = judgements.get(index, {})
            given = grade(grader, row.item, row.sample, answers, self.ports, budget)
            if self.handle.ended:
                raise RunStopped  # a grader found no time after that
            results.append(_result(given, self._judge_samples(grader, row, answers, allowance)))
        return results

    def _judge_samples(
        self, grader: Grader, row: CaseRow, answers: Mapping[str, ModelAnswer], allowance: shown.Allowance
    ) -> dict[str, dict[str, Any]]:
        """Return what the judges of a grader were asked and answered, by the keys of the requests."""
        asked = requests_of(grader, row.item, row.sample or {}, self.ports) if answers else ()
        return {
            request.key: shown.of_judge(request.body, answers[request.key], allowance)
            for request in asked
            if request.url == CHAT and request.key in answers
        }

    def _no_results(self, error: Mapping[str, str]) -> list[dict[str, Any]]:
        return [
            {
                "name": definition["name"],
                "type": definition["type"],
                "score": None,
                "passed": False,
                "error": dict(error),
            }
            for definition in self.payload.criteria
        ]

    def _output_item(self, row: CaseRow, results: list[dict[str, Any]]) -> dict[str, Any]:
        if any("error" in result for result in results):
            status = runs.ERRORED
        else:
            status = runs.PASSED if all(result["passed"] for result in results) else runs.FAILED
        return {
            "object": "eval.run.output_item",
            "eval_id": self.payload.eval_id,
            "created_at": int(now()),
            "status": status,
            "datasource_item_id": row.number,
            "datasource_item": row.item,
            "results": results,
            "sample": row.shown,
        }

    def _record_of(self, line: int, row: CaseRow, results: list[dict[str, Any]]) -> LineRecord:
        return self._item_record(line, self._output_item(row, results))

    def _item_record(self, line: int, fields: Mapping[str, Any]) -> LineRecord:
        """Return the record of an output item, which gets the ids of this run."""
        job = self.claim.job
        item = {**fields, "id": runs.item_id(job.id, self.claim.first_line + line), "run_id": job.id}
        status, results = item["status"], item["results"]
        word = status
        if status == runs.ERRORED:
            code = next(result["error"]["code"] for result in results if "error" in result)
            word = outcomes.ERROR + (outcomes.word(code) or "other_error")
        good = status == runs.PASSED
        data = b"%d\t%d\t%b\n" % (line, good, msgspec.json.encode(item))
        return LineRecord(line, good, data, outcomes=(word,))


def _result(given: Grade, judged: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the result of a criterion as clients see it; `judged` is what its judges were asked and answered."""
    result: dict[str, Any] = {
        "name": given.name,
        "type": given.type,
        "score": given.score,
        "passed": bool(given.passed),
    }
    result |= _evidence(given, judged.get("", {}))
    if given.sub_grades:
        result["sub_results"] = {
            name: {"score": sub.score, **_evidence(sub, judged.get(name, {}))} for name, sub in given.sub_grades.items()
        }
    return result


def _evidence(given: Grade, judged: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a score rests on, and the error of one that is wrong or missing."""
    sample = {**judged, **given.details}
    error = given.error
    return ({"sample": sample} if sample else {}) | (
        {"error": {"code": error.code, "message": error.message}} if error is not None else {}
    )


# ── the end ──


class Result(msgspec.Struct):
    """The parts of a result that are counted."""

    passed: bool
    score: float | None = None
    error: Any = None
    sample: Any = None


class Criterion:
    """The counts of a testing criterion, and the mean of the scores that are no errors'.

    The code of a grader that fails has the score 0 beside its error: it tells nothing about the model.

    Of a run that was graded here also the perplexity of all texts together, or the metrics of the classification. An
    imported run has no `grader`: the details of its results are the client's own.
    """

    def __init__(self, name: str, grader: Grader | None) -> None:
        self._name = name
        self._is_likelihood = grader is not None and grader.is_likelihood
        classes = grader.classes if grader is not None else []
        self._classification = Classification(classes) if classes else None
        self._counts = dict.fromkeys(("passed", "failed", "errored"), 0)
        self._scored, self._mean = 0, 0.0
        self._tokens, self._log_likelihood = 0, 0.0

    def add(self, result: Result) -> None:
        self._counts["errored" if result.error is not None else "passed" if result.passed else "failed"] += 1
        if result.score is None or result.error is not None:
            return
        self._scored += 1
        self._mean += result.score / self._scored - self._mean / self._scored  # a sum of large scores is infinite
        if self._is_likelihood:
            self._tokens += result.sample["tokens"]
            self._log_likelihood += result.score * result.sample["tokens"]
        if self._classification is not None and "expected" in result.sample:
            self._classification.add(result.sample["expected"], result.sample["predicted"])

    def row(self) -> dict[str, Any]:
        row: dict[str, Any] = {
            "testing_criteria": self._name,
            **self._counts,
            "scored": self._scored,
            "mean_score": self._mean if self._scored else None,
        }
        if self._tokens:
            row["perplexity"] = math.exp(-self._log_likelihood / self._tokens)
        if self._classification is not None:
            row["classification"] = self._classification.summary()
            row["agreement"] = self._classification.agreement()
        return row


class _Graded(msgspec.Struct):
    """The parts of an output item that are counted."""

    results: list[Result]


_graded = msgspec.json.Decoder(_Graded).decode


def finish(context: Context, claim: JobClaim, _handle: ClaimHandle) -> None:
    """Count the results of the claimed run by criterion, and end it. Raises ClaimLost, NotFound."""
    payload = Evaluation.model_validate(claim.job.payload)
    graders: Sequence[Grader | None] = payload.graders or [None] * len(payload.criteria)
    criteria = [Criterion(row["name"], grader) for row, grader in zip(payload.criteria, graders, strict=True)]
    for output in outputs_of(context, claim.job.id):
        for criterion, result in zip(criteria, _graded(output).results, strict=True):
            criterion.add(result)
    close(context, claim, [criterion.row() for criterion in criteria])
