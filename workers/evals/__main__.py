"""Grade one sample for a request: `python -m workers.evals`, see `jobs.evals.grading_process`."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from jobs.evals.availability import ports_of
from jobs.evals.graders import parse_grader
from jobs.evals.graders.base import RunPython
from jobs.evals.grading import grade, requests_of
from jobs.evals.grading_process import GradingOutcome, GradingTask, decode_question, encode_outcome
from jobs.evals.samples import sample_from_text
from jobs.fleet.models_file import Registry
from jobs.settings import Settings
from workers.evals.python_grader import PythonSandbox


def answer(question: GradingTask, run_python: RunPython) -> GradingOutcome:
    """Return the grade, or the requests to models if there are any and none was answered."""
    ports = ports_of(Settings(wordnet=question.wordnet), Registry({}, {}, Path()), run_python)
    ports = replace(ports, embedding_model=question.embedding_model)
    grader, sample = parse_grader(question.grader), sample_from_text(question.model_sample)
    if question.answers is None and (requests := requests_of(grader, question.item, sample, ports)):
        return GradingOutcome(requests=requests)
    return GradingOutcome(grade(grader, question.item, sample, question.answers or {}, ports))


def main() -> None:
    question, sandbox = decode_question(sys.stdin.buffer.read()), PythonSandbox()
    try:
        outcome = answer(question, partial(sandbox.run, question.project))
    finally:
        sandbox.close()
    sys.stdout.buffer.write(encode_outcome(outcome))


if __name__ == "__main__":
    main()
