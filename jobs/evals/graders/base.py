"""The parts of all graders: their base class, the case that is graded, its grade, and what it may cost.

    Grader      the definition, which can be checked without an item
      models      the models that it asks                          `requests`  what it asks them about a case
      missing     which part of the deployment it lacks
      score       the score of a case, or GradingError             `grade`     the same as a Grade

An error is not a failure: a judge that answers nonsense gives no score. A python grader that raises an error gives the
score 0 and the error. The error codes are the names that OpenAI's graders report.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, NamedTuple, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from jobs.evals import templates
from jobs.evals.templates import TemplateError
from jobs.evals.text_metrics import MAX_SECONDS
from jobs.timings import Timings

Values = Mapping[str, Any]

OTHER: Final = "other_error"
FORMULA: Final = "formula_parse_error"
SAMPLE_PARSE: Final = "sample_parse_error"
JUDGE_PARSE: Final = "model_grader_parse_error"
JUDGE_REFUSAL: Final = "model_grader_refusal_error"
JUDGE_SERVER: Final = "model_grader_server_error"
TRUNCATED: Final = "truncated_observation_error"
PYTHON_RUNTIME: Final = "python_grader_runtime_error"
PYTHON_SERVER: Final = "python_grader_server_error"
#: The score at which a grader passes that names no threshold, if its scores are between 0 and 1.
MIDDLE: Final = 0.5
#: A score, whatever its sign: the sum of as many as a run has items is finite.
MAX_SCORE: Final = 1e300
#: Characters of a text in an error.
SHOWN: Final = 200

Template = Annotated[str, Field(max_length=templates.MAX_LENGTH), AfterValidator(templates.check)]
ModelName = Annotated[str, Field(min_length=1, max_length=256)]
Label = Annotated[str, Field(min_length=1, max_length=256)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class GradingError(Exception):
    """A grader gives no score, or, where `score` is set, that score and an error."""

    def __init__(self, code: str, message: str, score: float | None = None) -> None:
        super().__init__(message)
        self.code, self.score = code, score


@dataclass(frozen=True, slots=True)
class GraderError:
    """The error of a grader. `code` is one of OpenAI's names."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Grade:
    """The result of one grader for one item. With an `error` the item counts as errored, not as failed."""

    name: str
    type: str
    score: float | None
    passed: bool | None
    error: GraderError | None = None
    details: Values = field(default_factory=dict)
    sub_grades: Mapping[str, "Grade"] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A request that a grader needs answered. `key` names the request among those of its grader and item."""

    key: str
    url: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """The answer to a `ModelRequest`: an HTTP status and a body in OpenAI's shape."""

    status: int
    body: Values


class RunPython(Protocol):
    """Run a python grader's source in the sandbox of a worker."""

    def __call__(self, source: str, item: Values, sample: Values, seconds: float) -> float:
        """Return what the source's `grade` returns within `seconds`. Raises: GradingError."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Parts of the deployment that some graders need; None where the deployment has none.

    `wordnet` opens WordNet at its first call, which takes seconds.
    """

    embedding_model: str | None = None
    run_python: RunPython | None = None
    wordnet: Callable[[], Any] | None = None


@dataclass(frozen=True, slots=True)
class GradingParts:
    """The parts that some graders need. Without `embedding_model` no model makes embeddings.

    `runs_python` is None until a worker has said whether it has the sandbox of python graders.
    `encodes_tokens`: that model is one of this deployment's own, which also gives the embeddings of tokens.
    """

    runs_python: bool | None = False
    has_wordnet: bool = False
    embedding_model: str | None = None
    encodes_tokens: bool = False


class MissingPart(NamedTuple):
    """Why a deployment cannot run a grader: a message, and the code of the refusal.

    `is_temporary`: a worker that is starting may have the missing part.
    """

    message: str
    code: str
    is_temporary: bool = False


class GradingBudget:
    """Bound what all graders of one item take together: seconds, and estimated seconds of a processor for its texts.

    `stopped` says whether the grades are of no use any more.
    """

    def __init__(self, seconds: float = Timings().item_grading, stopped: Callable[[], bool] = lambda: False) -> None:
        self._seconds, self._ends, self._stopped = seconds, time.monotonic() + seconds, stopped
        self._text_seconds = MAX_SECONDS

    def seconds_left(self) -> float:
        """Return the seconds that are left. Raises: GradingError, where there are none."""
        if self._stopped():
            raise GradingError(OTHER, "The run has ended.")
        left = self._ends - time.monotonic()
        if left <= 0:
            raise GradingError(OTHER, f"The graders of this item took more than {self._seconds:g} seconds.")
        return left

    def take(self, seconds: float) -> None:
        """Take estimated seconds for the comparison of texts. Raises: GradingError, where too few are left."""
        if seconds > self._text_seconds:
            raise GradingError(OTHER, "The texts of this item are too long for all of its text metrics together.")
        self._text_seconds -= seconds


@dataclass(frozen=True, slots=True)
class GradingCase:
    """An item to grade, and what there is to grade it with. `key` is that of the grader in its `multi`.

    `read` has what the templates of the grader have read as JSON.
    """

    item: Values
    sample: Values
    ports: Ports = Ports()
    answers: Mapping[str, ModelAnswer] = field(default_factory=dict)
    budget: GradingBudget = field(default_factory=GradingBudget)
    key: str = ""
    read: dict[str, Any] = field(default_factory=dict)

    def render(self, template: str) -> str:
        with _template_errors():
            return templates.render(template, self.item, self.sample, self.read)

    def value_of(self, template: str) -> Any:
        with _template_errors():
            return templates.value_of(template, self.item, self.sample, self.read)

    def answer_body(self) -> Values:
        """Return the body of the answer to the grader's request. Raises: GradingError."""
        answer = self.answers.get(self.key)
        if answer is None:
            raise GradingError(JUDGE_SERVER, "The model gave no answer.")
        if answer.status != 200:
            error = answer.body.get("error")
            message = error.get("message") if isinstance(error, Mapping) else None
            raise GradingError(JUDGE_SERVER, f"The model's server answered {answer.status}: {str(message)[:SHOWN]}")
        return answer.body

    def run_python(self, source: str, item: Values, sample: Values) -> float:
        """Return what the source's `grade` returns, in the time that is left. Raises: GradingError."""
        if self.ports.run_python is None:
            raise GradingError(PYTHON_SERVER, "This deployment has no sandbox for python graders.")
        return self.ports.run_python(source, item, sample, self.budget.seconds_left())


@contextmanager
def _template_errors() -> Iterator[None]:
    try:
        yield
    except TemplateError as error:
        raise GradingError(error.code, str(error)) from error


class Definition(BaseModel):
    """Base of all parts of a grader: types are exact, unknown fields are refused, null stands for a missing field."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Grader(Definition):
    """Base of all graders.

    The class variables are what the reference says of a type: whether OpenAI has it, its scores, and its limits. A
    grader that `combines` others is not one of those. If `is_likelihood`, the score is the mean log-likelihood of the
    `tokens` in its details, and a run has the perplexity of all texts together. On the command line a grader is
    NAME=KIND:REFERENCE, and the kinds of a type are the values of its field `kind_field`, to which `kind_fields` are
    added.
    """

    is_openai: ClassVar[bool] = False
    scores: ClassVar[str] = "0 or 1"
    limits: ClassVar[str] = ""
    combines: ClassVar[bool] = False
    is_likelihood: ClassVar[bool] = False
    kind_field: ClassVar[str] = ""
    kind_fields: ClassVar[Mapping[str, Any]] = {}

    name: Annotated[str, Field(min_length=1, max_length=256)]
    if TYPE_CHECKING:
        type: str  # of each grader its own

    @property
    def threshold(self) -> float:
        """Return the score from which on an item passes."""
        return 1.0

    def passes(self, score: float) -> bool:
        return score >= self.threshold

    @property
    def classes(self) -> list[str]:
        """Return the labels of which a run has the metrics of a classification; none for most graders."""
        return []

    def models(self, _embedding_model: str | None) -> list[tuple[str, str]]:
        """Return the endpoint and the name of each model that the grader asks; the deployment's is given."""
        return []

    def templates(self) -> Iterator[str]:
        """Yield the templates of the grader."""
        fields = (getattr(self, name, None) for name in ("question", "input", "context", "reference"))
        yield from (field for field in fields if isinstance(field, str))

    def sources(self) -> Iterator[tuple[str, str]]:
        """Yield the code that the client wrote: the path of its field in the definition, and the text."""
        yield from ()

    def missing(self, _deployment: GradingParts) -> MissingPart | None:
        """Return the part that the grader needs and the deployment lacks."""
        return None

    def requests(self, case: GradingCase) -> list[ModelRequest]:
        """Return what the grader asks models about a case.

        A request that cannot be made, such as one whose template names a missing field, is left out: `grade` reports
        why.
        """
        try:
            asked = self.request(case)
        except GradingError:
            return []
        return [ModelRequest(case.key, *asked)] if asked else []

    def request(self, _case: GradingCase) -> tuple[str, dict[str, Any]] | None:
        """Return the endpoint and the body of what the grader asks about a case. Raises: GradingError."""
        return None

    def grade(self, case: GradingCase) -> Grade:
        """Return the grade of a case."""
        try:
            case.budget.seconds_left()
            score, details = self.score(case)
            if not -MAX_SCORE <= score <= MAX_SCORE:  # NaN is none either
                raise GradingError(OTHER, f"The score {score:g} is not between -{MAX_SCORE:g} and {MAX_SCORE:g}.")
        except GradingError as error:
            passed = None if error.score is None else self.passes(error.score)
            return Grade(self.name, self.type, error.score, passed, GraderError(error.code, str(error)))
        return Grade(self.name, self.type, score, self.passes(score), details=details)

    def score(self, case: GradingCase) -> tuple[float, Values]:
        """Return the score of a case, and its details. Raises: GradingError."""
        raise NotImplementedError


class Thresholded(Grader):
    """A grader of which the client may say from which score on an item passes."""

    scores: ClassVar[str] = "0 to 1"
    kind_fields: ClassVar[Mapping[str, Any]] = {"pass_threshold": MIDDLE}

    pass_threshold: Finite | None = None

    @property
    def threshold(self) -> float:
        return MIDDLE if self.pass_threshold is None else self.pass_threshold
