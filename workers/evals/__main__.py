"""Run a python grader once, for a request: `python -m workers.evals`.

Standard input: {"project", "source", "item", "sample"}. Standard output: {"score", "code", "message"}.
"""

import json
import sys

from jobs.evals.graders.base import GradingError
from workers.evals.python_grader import PythonSandbox


def main() -> None:
    sandbox = PythonSandbox()
    try:
        result = {"score": sandbox.run(**json.load(sys.stdin)), "code": None, "message": ""}
    except GradingError as error:
        result = {"score": error.score, "code": error.code, "message": str(error)}
    finally:
        sandbox.close()
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
