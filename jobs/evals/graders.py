"""The definitions of graders: OpenAI's types, checked as far as they can be without an item.

    string_check      compare two texts                          score 0 or 1
    text_similarity   measure how alike two texts are            `jobs.evals.text_metrics`
    label_model       let a model choose a label                 score 0 or 1
    score_model       let a model give a score                   within `range`
    python            run code in the sandbox of a worker        any number
    multi             compute a score from those of others       `jobs.evals.formulas`

Types beyond OpenAI's:

    exact_match, regex, json_schema                     score 0 or 1
    faithfulness, answer_relevance,
    context_precision, context_recall                   judge answers and contexts           `jobs.evals.grounding`
    ranking                                             measure a list of names              `jobs.retrieval.metrics`
    perplexity                                          the likelihood of the item's text

and the metrics `bertscore` and `chrf`.

`Grader` is the type of a request's field; errors in it are validation errors of the request. A stored definition is
read with `parse_grader`.
"""

import json
import keyword
import math
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from jobs.evals import patterns, templates
from jobs.evals.formulas import FUNCTIONS, MAX_LENGTH, Formula

#: The score at which a grader passes that names no threshold, if its scores are between 0 and 1.
MIDDLE: Final = 0.5
MAX_SOURCE_BYTES: Final = 256 << 10
MAX_SCHEMA_BYTES: Final = 64 << 10
#: Labels of the classifications of an eval, all together: a run shows how often each was taken for each other one.
MAX_CLASSES: Final = 100
_MAX_GRADERS: Final = 20
_MAX_LABELS: Final = 200
_MAX_MESSAGES: Final = 100
_MAX_PARTS: Final = 100

Metric = Literal[
    "bertscore",
    "cosine",
    "fuzzy_match",
    "bleu",
    "chrf",
    "gleu",
    "meteor",
    "rouge_1",
    "rouge_2",
    "rouge_3",
    "rouge_4",
    "rouge_5",
    "rouge_l",
]
Template = Annotated[str, Field(max_length=templates.MAX_LENGTH), AfterValidator(templates.check)]
_Name = Annotated[str, Field(min_length=1, max_length=256)]
_Model = Annotated[str, Field(min_length=1, max_length=256)]
_Label = Annotated[str, Field(min_length=1, max_length=256)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class Definition(BaseModel):
    """Base of all parts of a grader: types are exact, unknown fields are refused, null stands for a missing field."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Named(Definition):
    name: _Name

    @property
    def threshold(self) -> float:
        """Return the score from which on an item passes."""
        return 1.0

    def passes(self, score: float) -> bool:
        return score >= self.threshold


class _Thresholded(_Named):
    """A grader of which the client may say from which score on an item passes."""

    pass_threshold: _Finite | None = None

    @property
    def threshold(self) -> float:
        return MIDDLE if self.pass_threshold is None else self.pass_threshold


class StringCheck(_Named):
    """Compare `input` with `reference`: equal, not equal, or containing it with (`like`) or without (`ilike`) case."""

    type: Literal["string_check"]
    input: Template
    operation: Literal["eq", "ne", "like", "ilike"]
    reference: Template


class TextSimilarity(_Thresholded):
    """Measure how alike `input` and `reference` are."""

    type: Literal["text_similarity"]
    input: Template
    evaluation_metric: Metric
    reference: Template


class ExactMatch(_Named):
    """Compare `input` with `reference` after the differences that are to be ignored have been removed from both.

    With `labels` the run has the metrics of a classification: the reference is one of them, and `input` a prediction.
    """

    type: Literal["exact_match"]
    input: Template
    reference: Template
    ignore_case: bool | None = None
    ignore_punctuation: bool | None = None
    ignore_whitespace: bool | None = None
    labels: Annotated[list[_Label], Field(min_length=1, max_length=MAX_CLASSES)] | None = None

    def normalized(self, text: str) -> str:
        """Return a text without the differences that are ignored."""
        if self.ignore_case:
            text = text.casefold()
        if self.ignore_punctuation:
            text = "".join(character for character in text if not unicodedata.category(character).startswith("P"))
        return " ".join(text.split()) if self.ignore_whitespace else text

    def labels_by_text(self) -> dict[str, str]:
        """Return the labels by what they are without the differences that are ignored."""
        return {self.normalized(label): label for label in self.labels or ()}

    @model_validator(mode="after")
    def _check_labels(self) -> "ExactMatch":
        if len(self.labels_by_text()) < len(self.labels or ()):
            raise ValueError("Each of the 'labels' is given once, whatever is ignored.")
        return self


def _check_pattern(pattern: str) -> str:
    try:
        patterns.check(pattern)
    except ValueError as error:
        raise ValueError(f"It is not a regular expression: {error}.") from error
    return pattern


class RegexMatch(_Named):
    """Search `input` for a regular expression."""

    type: Literal["regex"]
    input: Template
    pattern: Annotated[str, Field(min_length=1, max_length=patterns.MAX_LENGTH), AfterValidator(_check_pattern)]
    ignore_case: bool | None = None


def _check_schema_size(schema: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(schema)) > MAX_SCHEMA_BYTES:
        raise ValueError(f"A schema has at most {MAX_SCHEMA_BYTES} bytes.")
    return schema


class JsonSchemaMatch(_Named):
    """Check that `input` is JSON which is valid under `schema`, in the sandbox of python graders."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)

    type: Literal["json_schema"]
    input: Template
    schema_: Annotated[dict[str, Any], Field(alias="schema"), AfterValidator(_check_schema_size)]


class TextPart(Definition):
    """A text in a message to a judge."""

    type: Literal["input_text", "output_text"]
    text: Template


class ImagePart(Definition):
    """An image in a message to a judge."""

    type: Literal["input_image"]
    image_url: Template
    detail: Literal["auto", "low", "high"] | None = None


class AudioData(Definition):
    """A recording in base64."""

    data: Template
    format: Literal["mp3", "wav"]


class AudioPart(Definition):
    """A recording in a message to a judge."""

    type: Literal["input_audio"]
    input_audio: AudioData


Part = Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]


class Message(Definition):
    """A message to a judge."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Template | Part | Annotated[list[Template | Part], Field(min_length=1, max_length=_MAX_PARTS)]
    type: Literal["message"] | None = None

    @property
    def parts(self) -> list[str | TextPart | ImagePart | AudioPart]:
        return list(self.content) if isinstance(self.content, list) else [self.content]


_Messages = Annotated[list[Message], Field(min_length=1, max_length=_MAX_MESSAGES)]
_Labels = Annotated[list[_Label], Field(min_length=1, max_length=_MAX_LABELS)]


class LabelModel(_Named):
    """Let a model choose one of `labels`; `passing_labels` pass."""

    type: Literal["label_model"]
    model: _Model
    input: _Messages
    labels: _Labels
    passing_labels: _Labels

    @model_validator(mode="after")
    def _check_labels(self) -> "LabelModel":
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("Each of the 'labels' is given once.")
        if not set(self.passing_labels) <= set(self.labels):
            raise ValueError("The 'passing_labels' are among the 'labels'.")
        return self


class SamplingParams(Definition):
    """Parameters of a judge's requests. `max_completions_tokens` is OpenAI's spelling."""

    max_completions_tokens: int | None = Field(default=None, ge=1)
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    seed: int | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)


class ScoreModel(_Thresholded):
    """Let a model give a score within `range`."""

    type: Literal["score_model"]
    model: _Model
    input: _Messages
    range: Annotated[list[_Finite], Field(min_length=2, max_length=2)] | None = None
    sampling_params: SamplingParams | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """Return the lowest and the highest score."""
        lowest, highest = self.range or (0.0, 1.0)
        return lowest, highest

    @property
    def threshold(self) -> float:
        lowest, highest = self.bounds
        return lowest / 2 + highest / 2 if self.pass_threshold is None else self.pass_threshold

    @model_validator(mode="after")
    def _check_range(self) -> "ScoreModel":
        lowest, highest = self.bounds
        if lowest >= highest:
            raise ValueError("The first number of 'range' is below the second.")
        if not lowest <= self.threshold <= highest:
            raise ValueError("The 'pass_threshold' is within the 'range'.")
        return self


class _Judged(_Thresholded):
    """A grader whose formula counts what a judge decides."""

    model: _Model
    sampling_params: SamplingParams | None = None


class Faithfulness(_Thresholded):
    """Measure how much of the answer `input` the contexts support.

    With a `model` the model judges statements; without one, words are compared.
    """

    type: Literal["faithfulness"]
    input: Template
    context: Template
    model: _Model | None = None
    sampling_params: SamplingParams | None = None

    @model_validator(mode="after")
    def _check_judge(self) -> "Faithfulness":
        if self.sampling_params is not None and self.model is None:
            raise ValueError("The 'sampling_params' are those of a 'model', and there is none.")
        return self


class AnswerRelevance(_Judged):
    """Measure how much of the answer `input` helps to answer the question."""

    type: Literal["answer_relevance"]
    question: Template
    input: Template


class ContextPrecision(_Judged):
    """Measure whether the contexts that are useful for the reference stand before the others."""

    type: Literal["context_precision"]
    question: Template
    context: Template
    reference: Template


class ContextRecall(_Judged):
    """Measure how much of the reference the contexts support."""

    type: Literal["context_recall"]
    context: Template
    reference: Template


class Ranking(_Thresholded):
    """Measure the first `k` of the ranked names `input` by the relevant names `reference`."""

    type: Literal["ranking"]
    input: Template
    reference: Template
    evaluation_metric: Literal["recall", "precision", "ndcg", "mrr", "map"]
    k: Annotated[int, Field(ge=1, le=1000)]


class Perplexity(_Named):
    """Pass texts whose perplexity is at most `max_perplexity`.

    The sample is that of a data source `perplexity`. The score is the mean log-likelihood of a token, so that a higher
    score is better: the perplexity is exp(-score).
    """

    type: Literal["perplexity"]
    max_perplexity: Annotated[_Finite, Field(ge=1)]

    @property
    def threshold(self) -> float:
        return -math.log(self.max_perplexity)


def _check_size(source: str) -> str:
    if len(source.encode(errors="replace")) > MAX_SOURCE_BYTES:
        raise ValueError(f"A source has at most {MAX_SOURCE_BYTES} bytes.")
    return source


class PythonGrader(_Thresholded):
    """Run `grade(sample, item)` of `source`, which returns a number. `image_tag` is accepted and has no effect."""

    type: Literal["python"]
    source: Annotated[str, Field(min_length=1, max_length=MAX_SOURCE_BYTES), AfterValidator(_check_size)]
    image_tag: Annotated[str, Field(max_length=64)] | None = None


def _check_variable(name: str) -> str:
    if not (name.isascii() and name.isidentifier()) or keyword.iskeyword(name) or name in FUNCTIONS:
        raise ValueError("The key of a grader is a name of letters, digits and '_' that no function has.")
    return name


_Variable = Annotated[str, Field(max_length=64), AfterValidator(_check_variable)]
Judge = LabelModel | ScoreModel | Faithfulness | AnswerRelevance | ContextPrecision | ContextRecall
Measured = (
    StringCheck | TextSimilarity | PythonGrader | ExactMatch | RegexMatch | JsonSchemaMatch | Ranking | Perplexity
)
Single = Judge | Measured


class MultiGrader(_Thresholded):
    """Compute a score by the formula `calculate_output` from the scores of `graders`, none of which is a `multi`."""

    type: Literal["multi"]
    graders: Annotated[
        dict[_Variable, Annotated[Single, Field(discriminator="type")]], Field(min_length=1, max_length=_MAX_GRADERS)
    ]
    calculate_output: Annotated[str, Field(min_length=1, max_length=MAX_LENGTH)]

    @model_validator(mode="after")
    def _check_formula(self) -> "MultiGrader":
        if any(classes_of(grader) for grader in self.graders.values()):
            raise ValueError("A grader with 'labels' stands alone: a formula has no classification.")
        Formula(self.calculate_output, self.graders)
        return self


Grader = Annotated[Single | MultiGrader, Field(discriminator="type")]
_adapter: Final[TypeAdapter[Grader]] = TypeAdapter(Grader)


def parse_grader(definition: Mapping[str, Any]) -> Grader:
    """Return the grader of a stored definition.

    Raises: pydantic.ValidationError.
    """
    return _adapter.validate_python(definition)


def stored(grader: Grader) -> dict[str, Any]:
    """Return the definition as it is stored and shown: without fields that the client left out."""
    return grader.model_dump(mode="json", by_alias=True, exclude_none=True)


def singles(grader: Grader) -> list[Single]:
    """Return the graders that a grader consists of: those of a `multi`, else itself."""
    return list(grader.graders.values()) if isinstance(grader, MultiGrader) else [grader]


def classes_of(grader: Grader) -> list[str]:
    """Return the labels of which a run has the metrics of a classification; none for most graders."""
    return list(grader.labels or ()) if isinstance(grader, ExactMatch) else []


def models_asked(grader: Grader) -> list[str]:
    """Return the models that judge, each once."""
    judges = [single.model for single in singles(grader) if isinstance(single, Judge)]
    return list(dict.fromkeys(filter(None, judges)))


def references_of(grader: Grader) -> list[templates.Reference]:
    """Return the placeholders of all templates of a grader."""
    texts = [text for single in singles(grader) for text in _templates_of(single)]
    return [reference for text in texts for reference in templates.references(text)]


def _templates_of(grader: Single) -> Iterator[str]:
    fields = (getattr(grader, name, None) for name in ("question", "input", "context", "reference"))
    yield from (field for field in fields if isinstance(field, str))
    if isinstance(grader, LabelModel | ScoreModel):
        for part in (part for message in grader.input for part in message.parts):
            yield from _texts_of(part)


def _texts_of(part: str | TextPart | ImagePart | AudioPart) -> tuple[str, ...]:
    match part:
        case TextPart():
            return (part.text,)
        case ImagePart():
            return (part.image_url,)
        case AudioPart():
            return (part.input_audio.data,)
    return (part,)
