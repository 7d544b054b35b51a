"""Compute the grades of one item: pure functions of the item, the sample and what models answered.

    requests_of(grader, item, sample) ─▶ requests to judges and embedding models, by key
                                            │ answered by whoever calls: a sampling job, or an interactive request
    grade(grader, item, sample, answers) ◀──┘ ─▶ Grade: a score and whether it passes, or an error

An error is not a failure: a judge that answers nonsense gives no score. A python grader that raises an error gives the
score 0 and the error. The error codes are the names that OpenAI's graders report.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from jobs.evals import grounding, patterns, templates, text_metrics
from jobs.evals.formulas import Formula, FormulaError
from jobs.evals.graders import (
    AudioPart,
    ContextPrecision,
    ExactMatch,
    Faithfulness,
    Grader,
    ImagePart,
    JsonSchemaMatch,
    Judge,
    LabelModel,
    Measured,
    Message,
    MultiGrader,
    Perplexity,
    PythonGrader,
    Ranking,
    RegexMatch,
    ScoreModel,
    Single,
    StringCheck,
    TextPart,
    TextSimilarity,
)
from jobs.evals.grounding import Grounded
from jobs.evals.templates import TemplateError
from jobs.requests.endpoints import BERTSCORE, CHAT, EMBEDDINGS
from jobs.retrieval import metrics

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
#: Tokens of a judge's answer where the grader names no other limit.
JUDGE_TOKENS: Final = 1024
_LARGEST: Final = 1e300  # a score, whatever its sign: NaN and larger integers are none
_LARGEST_GRADE: Final = 1000  # of the relevance of a name
_LARGEST_LOSS: Final = 700.0  # nats a token: the perplexity of more is infinite
_MAX_TOKENS: Final = 1 << 40  # of a text
_MAX_STEPS: Final = 8  # of a judge's reasoning
_SHOWN: Final = 200  # characters of a text in an error
#: Says in the sandbox whether a text is JSON that is valid under a schema. No reference is fetched.
_CHECK_SCHEMA: Final = """
import json
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for
from referencing import Registry

def refuse(constant):
    raise ValueError(constant)

def grade(sample, item):
    kind = validator_for(item["schema"], default=Draft202012Validator)
    kind.check_schema(item["schema"])
    try:
        value = json.loads(item["text"], parse_constant=refuse)
    except (ValueError, RecursionError):
        return 0
    return kind(item["schema"], registry=Registry()).is_valid(value)
"""


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
    details: Mapping[str, Any] = field(default_factory=dict)
    sub_grades: Mapping[str, "Grade"] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A request that a grader needs answered. `key` names the request among those of its grader and item."""

    key: str
    url: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a `ModelRequest`: an HTTP status and a body in OpenAI's shape."""

    status: int
    body: Mapping[str, Any]


class RunPython(Protocol):
    """Run a python grader's source in the sandbox of a worker."""

    def __call__(self, source: str, item: Values, sample: Values) -> float:
        """Return what the source's `grade` returns. Raises: GradingError."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Parts of the deployment that some graders need; None where the deployment has none.

    `wordnet` opens WordNet at its first call, which takes seconds.
    """

    embedding_model: str | None = None
    run_python: RunPython | None = None
    wordnet: Callable[[], Any] | None = None


@dataclass(frozen=True, slots=True)
class _Case:
    """An item to grade, and what there is to grade it with."""

    item: Values
    sample: Values
    ports: Ports
    answers: Mapping[str, Answer] = field(default_factory=dict)

    def render(self, template: str) -> str:
        with _template_errors():
            return templates.render(template, self.item, self.sample)

    def value_of(self, template: str) -> Any:
        with _template_errors():
            return templates.value_of(template, self.item, self.sample)


@contextmanager
def _template_errors() -> Iterator[None]:
    try:
        yield
    except TemplateError as error:
        raise GradingError(error.code, str(error)) from error


def requests_of(grader: Grader, item: Values, sample: Values, ports: Ports = Ports()) -> list[ModelRequest]:
    """Return the requests that a grader needs answered before it can grade this item.

    A request that cannot be made, such as one whose template names a missing field, is left out: `grade` reports why.
    """
    case = _Case(item, sample, ports)
    requests = [_request_of(key, single, case) for key, single in _by_key(grader).items()]
    return [request for request in requests if request is not None]


def grade(grader: Grader, item: Values, sample: Values, answers: Mapping[str, Answer], ports: Ports = Ports()) -> Grade:
    """Grade an item. `answers` are those to the requests of `requests_of`, by key."""
    case = _Case(item, sample, ports, answers)
    grades = {key: _grade_single(key, single, case) for key, single in _by_key(grader).items()}
    return _combined(grader, grades) if isinstance(grader, MultiGrader) else grades[""]


def chat_messages(messages: Sequence[Message], item: Values, sample: Values) -> list[dict[str, Any]]:
    """Return messages as chat completions have them, with the values of their placeholders.

    Raises: GradingError, for a placeholder without a value.
    """
    case = _Case(item, sample, Ports())
    return [_chat_message(message, case) for message in messages]


def _by_key(grader: Grader) -> Mapping[str, Single]:
    return grader.graders if isinstance(grader, MultiGrader) else {"": grader}


def _combined(grader: MultiGrader, grades: Mapping[str, Grade]) -> Grade:
    """Return the grade of a `multi`: without a score where one of its graders has none."""
    error = next((sub.error for sub in grades.values() if sub.error is not None), None)
    scores = {name: sub.score for name, sub in grades.items() if sub.score is not None}
    if len(scores) < len(grades):
        return Grade(grader.name, grader.type, None, None, error, sub_grades=grades)
    try:
        score = Formula(grader.calculate_output, scores).evaluate(scores)
    except FormulaError as fault:
        return Grade(grader.name, grader.type, None, None, GraderError(FORMULA, str(fault)), sub_grades=grades)
    return Grade(grader.name, grader.type, score, grader.passes(score), error, sub_grades=grades)


def _grade_single(key: str, grader: Single, case: _Case) -> Grade:
    try:
        score, details = _score(key, grader, case)
    except GradingError as error:
        passed = None if error.score is None else grader.passes(error.score)
        return Grade(grader.name, grader.type, error.score, passed, GraderError(error.code, str(error)))
    return Grade(grader.name, grader.type, score, grader.passes(score), details=details)


def _score(key: str, grader: Single, case: _Case) -> tuple[float, Values]:
    """Return a score and its details. Raises: GradingError."""
    match grader:
        case Faithfulness(model=None):
            return grounding.lexical_faithfulness(_texts(grader, case)), {}
        case Perplexity():
            return _perplexity(case)
        case ExactMatch():
            return _match_exactly(grader, case)
        case TextSimilarity(evaluation_metric="bertscore"):
            return _bertscore(key, grader, case)
    if isinstance(grader, Judge):
        return _judge(key, grader, case)
    return _measure(key, grader, case), {}


def _measure(key: str, grader: Measured, case: _Case) -> float:
    """Return the score of a grader that asks no judge. Raises: GradingError."""
    match grader:
        case Ranking():
            return _rank(grader, case)
        case TextSimilarity():
            return _similarity(key, grader, case)
        case PythonGrader():
            return _run_python(grader.source, case.item, case.sample, case)
        case JsonSchemaMatch():
            return _match_schema(grader, case)
    assert isinstance(grader, StringCheck | RegexMatch)
    return float(_matches(grader, case) if isinstance(grader, StringCheck) else _is_found(grader, case))


def _matches(grader: StringCheck, case: _Case) -> bool:
    text, reference = case.render(grader.input), case.render(grader.reference)
    match grader.operation:
        case "eq":
            return text == reference
        case "ne":
            return text != reference
        case "like":
            return reference in text
        case "ilike":
            return reference.casefold() in text.casefold()


def _match_exactly(grader: ExactMatch, case: _Case) -> tuple[float, Values]:
    """Return whether two texts are equal, with both labels where there are any."""
    text, reference = (grader.normalized(case.render(template)) for template in (grader.input, grader.reference))
    labels = grader.labels_by_text()
    if labels and reference not in labels:
        raise GradingError(OTHER, f"The reference is none of the labels: {reference[:_SHOWN]!r}.")
    details = {"expected": labels[reference], "predicted": labels.get(text)} if labels else {}
    return float(text == reference), details


def _is_found(grader: RegexMatch, case: _Case) -> bool:
    try:
        return patterns.is_found(grader.pattern, case.render(grader.input), ignore_case=bool(grader.ignore_case))
    except patterns.SearchFailed as error:
        raise GradingError(OTHER, str(error)) from error


def _match_schema(grader: JsonSchemaMatch, case: _Case) -> float:
    """Check a text in the sandbox: a schema of a few bytes can take for ever, or all memory."""
    item = {"schema": grader.schema_, "text": case.render(grader.input)}
    try:
        return _run_python(_CHECK_SCHEMA, item, {}, case)
    except GradingError as error:
        raise GradingError(OTHER, f"The schema could not be checked: {error}") from error


def _run_python(source: str, item: Values, sample: Values, case: _Case) -> float:
    if case.ports.run_python is None:
        raise GradingError(PYTHON_SERVER, "This deployment has no sandbox for python graders.")
    return case.ports.run_python(source, item, sample)


# Likelihoods and rankings.


def _perplexity(case: _Case) -> tuple[float, Values]:
    """Return the mean log-likelihood, with the perplexity and the tokens. The sample may be a client's own."""
    match case.sample.get("output_json"):
        case {"mean_log_likelihood": float() | int() as score, "tokens": int() as tokens} if (
            -_LARGEST_LOSS <= score <= 0 < tokens <= _MAX_TOKENS
        ):
            return float(score), {"perplexity": math.exp(-score), "tokens": tokens}
    raise GradingError(SAMPLE_PARSE, "The sample is not the likelihood of a text.")


def _rank(grader: Ranking, case: _Case) -> float:
    """Return the measure of a ranking. A name that occurs again does not count again."""
    ranked, relevant = case.value_of(grader.input), case.value_of(grader.reference)
    if not _are_names(ranked):
        raise GradingError(OTHER, "The 'input' is not a list of names.")
    grades = dict.fromkeys(relevant, 1) if _are_names(relevant) else relevant
    if not isinstance(grades, Mapping) or not all(_is_grade(value) for value in grades.values()):
        raise GradingError(OTHER, "The 'reference' is neither a list of names nor an object of names and their grades.")
    if not any(value > 0 for value in grades.values()):
        raise GradingError(OTHER, "The 'reference' has no relevant name.")
    return metrics.MEASURES[grader.evaluation_metric](list(dict.fromkeys(ranked)), grades, grader.k)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_grade(value: Any) -> bool:
    return type(value) is int and abs(value) <= _LARGEST_GRADE


# Similarity of texts.


def _similarity(key: str, grader: TextSimilarity, case: _Case) -> float:
    text, reference = case.render(grader.input), case.render(grader.reference)
    if grader.evaluation_metric == "cosine" and case.ports.embedding_model is None:
        raise GradingError(OTHER, "This deployment has no embedding model.")
    try:
        if grader.evaluation_metric == "cosine":
            return text_metrics.cosine(*_vectors(_answered(key, case)))
        wordnet = case.ports.wordnet() if case.ports.wordnet and grader.evaluation_metric == "meteor" else None
        return text_metrics.similarity(grader.evaluation_metric, text, reference, wordnet)
    except text_metrics.MetricUnavailable as error:
        raise GradingError(OTHER, str(error)) from error


def _bertscore(key: str, grader: TextSimilarity, case: _Case) -> tuple[float, Values]:
    """Return the F1 of BERTScore, with the precision, the recall, the model and its layer."""
    case.render(grader.input), case.render(grader.reference)  # raise the error of a template that has no value
    body = _answered(key, case)
    try:
        details = {name: body[name] for name in ("model", "layer", "precision", "recall")}
        return float(body["f1"]), details
    except (KeyError, TypeError, ValueError) as error:
        raise GradingError(JUDGE_PARSE, "The embedding model answered no BERTScore.") from error


def _vectors(body: Values) -> Sequence[Sequence[float]]:
    try:
        vectors = [[float(number) for number in row["embedding"]] for row in body["data"]]
    except (KeyError, TypeError, ValueError) as error:
        raise GradingError(JUDGE_PARSE, "The embedding model answered no vectors.") from error
    if len(vectors) != 2 or len(vectors[0]) != len(vectors[1]):
        raise GradingError(JUDGE_PARSE, "The embedding model did not answer two vectors of one length.")
    return vectors


# Judges.


def _request_of(key: str, grader: Single, case: _Case) -> ModelRequest | None:
    try:
        match grader:
            case Faithfulness(model=None):
                return None
            case TextSimilarity(evaluation_metric="cosine" | "bertscore") if case.ports.embedding_model:
                return _encoder_request(key, grader, case.ports.embedding_model, case)
        if isinstance(grader, Judge):
            return ModelRequest(key, CHAT, _judge_body(grader, case))
    except GradingError:
        return None
    return None


def _encoder_request(key: str, grader: TextSimilarity, model: str, case: _Case) -> ModelRequest:
    body = {"model": model, "input": [case.render(grader.input), case.render(grader.reference)]}
    if grader.evaluation_metric == "bertscore":
        return ModelRequest(key, BERTSCORE, body)
    return ModelRequest(key, EMBEDDINGS, body | {"encoding_format": "float"})


def _judge_body(grader: Judge, case: _Case) -> dict[str, Any]:
    messages, (task, result) = _judge_messages(grader, case), _task(grader, case)
    step = _object_schema({"description": {"type": "string"}, "conclusion": {"type": "string"}})
    steps = {"type": "array", "items": step, "maxItems": _MAX_STEPS}
    schema = {"name": "grade", "strict": True, "schema": _object_schema({"steps": steps, "result": result})}
    instruction = (
        f"{task} Answer with a JSON object that has two fields: 'steps', a list of objects with the texts "
        "'description' and 'conclusion', is your reasoning; 'result' is your decision."
    )
    return {
        "model": grader.model,
        "messages": _instructed(messages, instruction),
        "response_format": {"type": "json_schema", "json_schema": schema},
        **_sampling(grader),
    }


def _task(grader: Judge, case: _Case) -> tuple[str, Values]:
    """Return what a judge is to do, and the JSON schema of the result."""
    match grader:
        case LabelModel():
            task = f"Choose the label that fits best: {json.dumps(grader.labels, ensure_ascii=False)}."
            return task, {"type": "string", "enum": grader.labels}
        case ScoreModel():
            lowest, highest = grader.bounds
            return f"Give a score from {lowest:g} to {highest:g}.", {"type": "number"}
    return grounding.task(grader), grounding.result_schema(grader, _texts(grader, case))


def _sampling(grader: Judge) -> dict[str, Any]:
    params = None if isinstance(grader, LabelModel) else grader.sampling_params
    given = params.model_dump(exclude_none=True) if params else {}
    limit = given.pop("max_completions_tokens", JUDGE_TOKENS)
    return {"temperature": 0, "max_completion_tokens": limit} | given


def _judge_messages(grader: Judge, case: _Case) -> list[dict[str, Any]]:
    """Return the messages to a judge. Raises: GradingError, for a placeholder without a value."""
    if isinstance(grader, LabelModel | ScoreModel):
        return [_chat_message(message, case) for message in grader.input]
    return [{"role": "user", "content": json.dumps(_texts(grader, case), ensure_ascii=False)}]


def _texts(grader: Grounded, case: _Case) -> dict[str, Any]:
    """Return the texts by which an answer or its contexts are graded; contexts by their numbers from 1.

    Raises: GradingError.
    """
    names = {"question": "question", "input": "answer", "reference": "reference"}
    texts: dict[str, Any] = {
        shown: case.render(getattr(grader, name)) for name, shown in names.items() if hasattr(grader, name)
    }
    if blank := [name for name, text in texts.items() if not text.strip()]:
        raise GradingError(OTHER, f"The {blank[0]} is empty: there is nothing to judge.")
    if hasattr(grader, "context"):
        value = case.value_of(grader.context)
        contexts = value if isinstance(value, list) else [value]
        if len(contexts) > grounding.MAX_CONTEXTS:
            raise GradingError(OTHER, f"There are more than {grounding.MAX_CONTEXTS} contexts.")
        if not contexts and isinstance(grader, ContextPrecision):
            raise GradingError(OTHER, "There are no contexts.")
        texts["contexts"] = {str(number): templates.shown(context) for number, context in enumerate(contexts, 1)}
    return texts


def _object_schema(properties: Values) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _instructed(messages: list[dict[str, Any]], instruction: str) -> list[dict[str, Any]]:
    """Return the messages with the instruction in the first: some chat templates have one system message, in front."""
    first, *rest = messages
    if first["role"] in ("system", "developer") and isinstance(first["content"], str):
        return [{**first, "content": f"{first['content']}\n\n{instruction}"}, *rest]
    return [{"role": "system", "content": instruction}, *messages]


def _chat_message(message: Message, case: _Case) -> dict[str, Any]:
    if isinstance(message.content, str):
        return {"role": message.role, "content": case.render(message.content)}
    return {"role": message.role, "content": [_chat_part(part, case) for part in message.parts]}


def _chat_part(part: str | TextPart | ImagePart | AudioPart, case: _Case) -> dict[str, Any]:
    match part:
        case TextPart():
            return {"type": "text", "text": case.render(part.text)}
        case ImagePart():
            detail = {"detail": part.detail} if part.detail else {}
            return {"type": "image_url", "image_url": {"url": case.render(part.image_url), **detail}}
        case AudioPart():
            audio = part.input_audio
            return {"type": "input_audio", "input_audio": {"data": case.render(audio.data), "format": audio.format}}
    return {"type": "text", "text": case.render(part)}


def _judge(key: str, grader: Judge, case: _Case) -> tuple[float, Values]:
    """Return the score by what the judge answered, and the answer. Raises: GradingError."""
    if key not in case.answers:
        _judge_messages(grader, case)  # raises the error of a template that has no value
    text = _judge_text(_answered(key, case))
    try:
        verdict = json.loads(text)
        score = _judged_score(grader, verdict["result"], case)
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise _nonsense(text) from error
    return score, {name: verdict[name] for name in ("result", "steps") if name in verdict}


def _judged_score(grader: Judge, result: Any, case: _Case) -> float:
    """Return the score by a judge's result. Raises: ValueError, for a result that is not valid."""
    match grader:
        case LabelModel():
            if result not in grader.labels:
                raise ValueError("The result is not one of the labels.")
            return float(result in grader.passing_labels)
        case ScoreModel():
            if type(result) not in (int, float) or not -_LARGEST <= result <= _LARGEST:
                raise ValueError("The result is not a number.")
            lowest, highest = grader.bounds
            return min(max(float(result), lowest), highest)
    return grounding.score_of(grader, result, _texts(grader, case))


def _nonsense(text: str) -> GradingError:
    return GradingError(JUDGE_PARSE, f"The judge's answer has no valid result: {text[:_SHOWN]!r}")


def _answered(key: str, case: _Case) -> Values:
    """Return the body of the answer to a request. Raises: GradingError."""
    answer = case.answers.get(key)
    if answer is None:
        raise GradingError(JUDGE_SERVER, "The model gave no answer.")
    if answer.status != 200:
        error = answer.body.get("error")
        message = error.get("message") if isinstance(error, Mapping) else None
        raise GradingError(JUDGE_SERVER, f"The model's server answered {answer.status}: {str(message)[:_SHOWN]}")
    return answer.body


def _judge_text(body: Values) -> str:
    try:
        choice = body["choices"][0]
        message = choice["message"]
        refusal, text, reason = message.get("refusal"), message.get("content"), choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise GradingError(JUDGE_PARSE, "The judge answered no message.") from error
    if refusal:
        raise GradingError(JUDGE_REFUSAL, f"The judge refused: {str(refusal)[:_SHOWN]}")
    if reason == "length":
        raise GradingError(TRUNCATED, "The judge's answer was cut off at its limit of tokens.")
    return text if isinstance(text, str) else ""
