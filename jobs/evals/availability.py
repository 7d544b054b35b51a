"""Which graders this deployment can run. A grader that it cannot run is refused when it is created."""

from dataclasses import dataclass

from jobs.errors import InvalidRequest
from jobs.evals.graders import Grader, PythonGrader, Single, TextSimilarity, singles


@dataclass(frozen=True, slots=True)
class Deployment:
    """The parts that some graders need. Without `embedding_model` no model makes embeddings."""

    runs_python: bool = False
    has_wordnet: bool = False
    embedding_model: str | None = None


def check_available(grader: Grader, deployment: Deployment, param: str) -> None:
    """Check that the deployment can run a grader, which the field `param` of a request defines.

    Raises: InvalidRequest.
    """
    for single in singles(grader):
        _check(single, deployment, param)


def _check(grader: Single, deployment: Deployment, param: str) -> None:
    metric = grader.evaluation_metric if isinstance(grader, TextSimilarity) else None
    if isinstance(grader, PythonGrader) and not deployment.runs_python:
        message = "No worker of this deployment has the sandbox that python graders run in: see `nightmill doctor`."
        raise InvalidRequest(message, param=param, code="sandbox_unavailable")
    if metric == "meteor" and not deployment.has_wordnet:
        message = "The metric 'meteor' needs WordNet: install Debian's wordnet-base, or set NIGHTMILL_WORDNET."
        raise InvalidRequest(message, param=param, code="grader_unavailable")
    if metric == "cosine" and deployment.embedding_model is None:
        message = "The metric 'cosine' needs a model for embeddings, and this deployment has none."
        raise InvalidRequest(message, param=param, code="grader_unavailable")
