"""The bodies of requests about evals and their runs, and the objects that clients see."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from api.http.bodies import Body, Many
from api.http.fields import Metadata, MetadataField
from api.retrieval.search import RankingOptions
from jobs.datasets.references import MAX_LENGTH
from jobs.evals import evals, runs, templates
from jobs.evals.graders import Grader
from jobs.evals.graders.base import Template
from jobs.evals.graders.exact_match import MAX_CLASSES
from jobs.evals.graders.messages import Message
from jobs.evals.tables import Eval, EvalRun
from jobs.evals.token_limit import TokenLimit
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.prompts.resolution import PromptReference

MAX_CRITERIA = 50
#: Stored answers that a run reads.
MAX_STORED = 10_000
#: Bytes of items that the object of a run repeats.
MAX_SHOWN_BYTES = 16_384
_Name = Annotated[str, Field(min_length=1, max_length=255)]
_Model = Annotated[str, Field(min_length=1, max_length=255)]

# ── requests ──


class CustomConfig(Body):
    """Items of the client's own, each of which matches `item_schema`."""

    type: Literal["custom"]
    item_schema: dict[str, Any]
    include_sample_schema: bool = False


class StoredConfig(Body):
    """Items that are stored chat completions or responses."""

    type: Literal["logs", "stored_completions"]
    metadata: Metadata | None = None


def _check_classes(criteria: list[Grader]) -> list[Grader]:
    if sum(len(grader.classes) for grader in criteria) > MAX_CLASSES:
        raise ValueError(f"The criteria have at most {MAX_CLASSES} 'labels' of classifications, all together.")
    return criteria


class CreateEval(Body):
    name: _Name = "Untitled"
    data_source_config: Annotated[CustomConfig | StoredConfig, Field(discriminator="type")]
    testing_criteria: Annotated[
        Many[Grader], Field(min_length=1, max_length=MAX_CRITERIA), AfterValidator(_check_classes)
    ]
    metadata: MetadataField


class UpdateEval(Body):
    """The fields that are left out stay as they are; null removes the metadata."""

    name: _Name | None = None
    metadata: MetadataField


class Row(Body):
    """An item, and the sample of it where no model is asked for one."""

    item: dict[str, Any]
    sample: dict[str, Any] | None = None


class FileContent(Body):
    type: Literal["file_content"]
    content: Annotated[Many[Row], Field(min_length=1)]


class FileReference(Body):
    """A file of the purpose `evals`, or `dataset:NAME@VERSION/SPLIT`.

    On each line is `{"item": {…}}`, with a `"sample"` where no model is asked.
    """

    type: Literal["file_id"]
    id: str = Field(min_length=1, max_length=MAX_LENGTH)


Source = Annotated[FileContent | FileReference, Field(discriminator="type")]
_Time = Annotated[int, Field(ge=0, lt=1 << 40)]
_Score = Annotated[float, Field(ge=-1, le=1)]


class _StoredAnswers(Body):
    """Stored answers of the project that match each given field, the newest first."""

    metadata: MetadataField
    model: _Model | None = Field(default=None, description="As it was asked for, or as the answer names it.")
    created_after: _Time | None = Field(default=None, description="Inclusive.")
    created_before: _Time | None = Field(default=None, description="Inclusive.")
    min_score: _Score | None = Field(default=None, description="Of the mean of the feedback on the answer.")
    max_score: _Score | None = Field(default=None, description="Likewise. Answers without feedback do not match.")
    limit: int = Field(default=MAX_STORED, ge=1, le=MAX_STORED)


class StoredCompletions(_StoredAnswers):
    type: Literal["stored_completions"]


class StoredResponses(_StoredAnswers):
    """Stored responses. OpenAI's other filters are refused, but for null."""

    type: Literal["responses"]
    instructions_search: None = None
    reasoning_effort: None = None
    temperature: None = None
    tools: None = None
    top_p: None = None
    users: None = None


class TemplateMessages(Body):
    """Messages whose placeholders are filled from each item."""

    type: Literal["template"]
    template: Annotated[Many[Message], Field(min_length=1, max_length=100)]


def _check_reference(path: str) -> str:
    if not path.startswith("item."):
        raise ValueError("It is a path into the item, such as 'item.messages'.")
    templates.check("{{" + path + "}}")
    return path


class ItemReference(Body):
    """Messages that each item has itself."""

    type: Literal["item_reference"]
    item_reference: Annotated[str, Field(max_length=255), AfterValidator(_check_reference)]


def _check_templates(reference: PromptReference) -> PromptReference:
    for text in templates.strings_of(reference.variables):
        templates.check(text)
    return reference


class PromptMessages(Body):
    """The messages of a prompt, with its other fields. Strings in its variables are filled from each item."""

    type: Literal["prompt"]
    prompt: Annotated[PromptReference, AfterValidator(_check_templates)]


InputMessages = Annotated[TemplateMessages | ItemReference | PromptMessages, Field(discriminator="type")]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class _SamplingParams(TokenLimit, Body):
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63)
    reasoning_effort: Effort | None = None
    tools: Annotated[Many[dict[str, Any]], Field(max_length=128)] | None = None
    n: int = Field(default=1, ge=1, le=16, description="Samples of each item. Each is graded.")


class CompletionParams(_SamplingParams):
    response_format: dict[str, Any] | None = None


class ResponseParams(_SamplingParams):
    text: dict[str, Any] | None = None


class JsonlSource(Body):
    """Items that have their samples, or whose graders need none."""

    type: Literal["jsonl"]
    source: Source


class _Sampled(Body):
    """A model and the messages to it. Without both, the answers that stand beside the items are graded.

    A prompt may name the model.
    """

    model: _Model | None = None
    input_messages: InputMessages | None = None

    @model_validator(mode="after")
    def _check_both(self) -> Self:
        if isinstance(self.input_messages, PromptMessages):
            return self
        if (self.model is None) != (self.input_messages is None):
            raise ValueError("'model' and 'input_messages' are given together, or neither of them.")
        return self


class CompletionsSource(_Sampled):
    """Items for each of which a model is asked for a chat completion."""

    type: Literal["completions"]
    source: Annotated[FileContent | FileReference | StoredCompletions, Field(discriminator="type")]
    sampling_params: CompletionParams = CompletionParams()


class ResponsesSource(_Sampled):
    """Items for each of which a model is asked for a response. `seed` has no effect: responses know none."""

    type: Literal["responses"]
    source: Annotated[FileContent | FileReference | StoredResponses, Field(discriminator="type")]
    sampling_params: ResponseParams = ResponseParams()


class RetrievalSource(Body):
    """Items for each of which a vector store is searched, as by the route of its search. Not one of OpenAI's.

    The sample has the files, chunks and contexts of the results, best first, in `output_json`.
    """

    type: Literal["retrieval"]
    source: Source
    vector_store_id: str = Field(min_length=1, max_length=64)
    query: Template = "{{ item.query }}"
    max_num_results: int = Field(default=10, ge=1, le=50)
    filters: dict[str, Any] | None = None
    ranking_options: RankingOptions | None = None


class PerplexitySource(Body):
    """Items with a text each, whose likelihood a model of this deployment gives. Not one of OpenAI's."""

    type: Literal["perplexity"]
    source: Source
    model: _Model
    text: Template = "{{ item.text }}"


DataSource = Annotated[
    JsonlSource | CompletionsSource | ResponsesSource | RetrievalSource | PerplexitySource,
    Field(discriminator="type"),
]


class CreateRun(Body):
    name: _Name | None = None
    data_source: DataSource
    metadata: MetadataField


# ── objects ──


class DataSourceConfig(BaseModel):
    """`schema` is the JSON schema of what graders may refer to."""

    model_config = ConfigDict(serialize_by_alias=True)

    type: Literal["custom", "logs", "stored_completions"]
    schema_: dict[str, Any] = Field(serialization_alias="schema")
    metadata: dict[str, str] | None = Field(default=None, exclude_if=lambda value: value is None)


class EvalObject(BaseModel):
    model_config = ConfigDict(serialize_by_alias=True)

    id: str
    object: Literal["eval"] = "eval"
    created_at: int
    name: str
    data_source_config: DataSourceConfig
    testing_criteria: list[dict[str, Any]]
    metadata: dict[str, str] | None
    imported_from: str | None = Field(default=None, exclude_if=lambda value: value is None)


class EvalDeleted(BaseModel):
    object: Literal["eval.deleted"] = "eval.deleted"
    deleted: bool = True
    eval_id: str


RunStatus = Literal["queued", "in_progress", "completed", "canceled", "failed"]


class ResultCounts(BaseModel):
    """Items that have been graded. `errored` ones count as neither passed nor failed."""

    total: int
    errored: int
    failed: int
    passed: int


class ModelUsage(BaseModel):
    """Requests and tokens of a model in a run: of the sampled model, or of the model of a grader."""

    model_name: str
    invocation_count: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int


class LabelResult(BaseModel):
    """The metrics of one label. `support` is the number of items that have it."""

    precision: float
    recall: float
    f1: float
    support: int


class ConfusionMatrix(BaseModel):
    """The counts of each predicted label for each expected one. A row of `counts` is that of an expected label.

    `other` counts the predictions that are none of the labels, by expected label.
    """

    labels: list[str]
    counts: list[list[int]]
    other: list[int]


class ClassificationResult(BaseModel):
    """The metrics of a classification, over the items that are not errored. What has no value is 0."""

    accuracy: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    labels: dict[str, LabelResult]
    confusion_matrix: ConfusionMatrix


class AgreementResult(BaseModel):
    """The agreement of the expected and the predicted labels of a classification, or of a person and a judge.

    `kappa` is Cohen's: 0 is as often as by chance, 1 always. It is null where they cannot disagree.
    """

    items: int
    share: float | None
    kappa: float | None


class CriterionResult(BaseModel):
    testing_criteria: str
    passed: int
    failed: int
    errored: int
    scored: int | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="Items that `mean_score` is the mean of: those with a score and without an error.",
    )
    mean_score: float | None = Field(description="Of the `scored` items. Earlier runs, without it, have errors as 0.")
    perplexity: float | None = Field(
        default=None, exclude_if=lambda value: value is None, description="Of all texts together."
    )
    classification: ClassificationResult | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="Of an `exact_match` with `labels`, and of a judge with `human`.",
    )
    agreement: AgreementResult | None = Field(
        default=None, exclude_if=lambda value: value is None, description="Of the same criteria."
    )


class RunError(BaseModel):
    code: str
    message: str


class EvalRunObject(BaseModel):
    id: str
    object: Literal["eval.run"] = "eval.run"
    eval_id: str
    created_at: int
    status: RunStatus
    name: str
    model: str | None
    data_source: dict[str, Any]
    report_url: str
    result_counts: ResultCounts
    per_model_usage: list[ModelUsage] | None
    per_testing_criteria_results: list[CriterionResult] | None
    error: RunError | None
    metadata: dict[str, str] | None
    imported_from: str | None = Field(default=None, exclude_if=lambda value: value is None)


class RunDeleted(BaseModel):
    object: Literal["eval.run.deleted"] = "eval.run.deleted"
    deleted: bool = True
    run_id: str


class OutputItem(BaseModel):
    """An item with its grades. `sample` is what was graded; `error` in a result is why there is no score."""

    id: str
    object: Literal["eval.run.output_item"] = "eval.run.output_item"
    eval_id: str
    run_id: str
    created_at: int
    status: Literal["pass", "fail", "error"]
    datasource_item_id: int
    datasource_item: dict[str, Any]
    results: list[dict[str, Any]]
    sample: dict[str, Any]


# ── rows as objects ──


def show_eval(row: Eval) -> EvalObject:
    config = row.data_source_config
    return EvalObject(
        id=row.id,
        created_at=int(row.created_at),
        name=row.name,
        data_source_config=DataSourceConfig(
            type=config["type"],
            schema_=evals.row_schema(evals.item_schema(config), with_sample=config.get("include_sample_schema", True)),
            metadata=config.get("metadata"),
        ),
        testing_criteria=row.testing_criteria,
        metadata=row.metadata_,
        imported_from=row.imported_from,
    )


def show_run(
    run: EvalRun, job: Job, steps: Sequence[Job], counts: ResultCounts, usage: list[ModelUsage], report_url: str
) -> EvalRunObject:
    """Show a run. `steps` are the jobs that ask models for it."""
    ended = job.state in (JobState.SUCCEEDED, JobState.FAILED, JobState.EXPIRED, JobState.CANCELLED)
    results = [
        CriterionResult(**{name: row.get(name) for name in CriterionResult.model_fields}) for row in run.criteria or ()
    ]
    return EvalRunObject(
        id=run.id,
        eval_id=run.eval_id,
        created_at=int(run.created_at),
        status=status_of(job, steps),
        name=run.name,
        model=(job.payload.get("sampled") or job.payload.get("imported") or {}).get("model"),
        data_source=run.data_source,
        report_url=report_url,
        result_counts=counts,
        per_model_usage=usage if ended else None,
        per_testing_criteria_results=results if run.criteria is not None else None,
        error=_error(job, steps),
        metadata=run.metadata_,
        imported_from=run.imported_from,
    )


def status_of(job: Job, steps: Sequence[Job]) -> RunStatus:
    """Return OpenAI's word for the state of a run. A run that is being cancelled is `canceled`."""
    match job.state:
        case JobState.SUCCEEDED:
            return "completed"
        case JobState.FAILED | JobState.EXPIRED:
            return "failed"
        case JobState.CANCELLING | JobState.CANCELLED:
            return "canceled"
        case JobState.QUEUED if all(step.state == JobState.QUEUED for step in steps):
            return "queued"
    return "in_progress"


def _error(job: Job, steps: Sequence[Job]) -> RunError | None:
    """Return the first error of a failed run: its own, or that of the job that it waited for."""
    if job.state not in (JobState.FAILED, JobState.EXPIRED):
        return None
    errors = [error for stage in (*steps, job) for error in stage.errors or ()]
    first = next((error for error in errors if error.get("code") != "dependency_failed"), None) or {}
    line = f"Line {first['line']}: " if first.get("line") else ""
    return RunError(code=first.get("code") or "server_error", message=f"{line}{first.get('message') or 'It failed.'}")


def counts_of(outcomes: dict[str, int]) -> ResultCounts:
    """Return the counts of a run's items from the outcomes of its job."""
    passed, failed = outcomes.get(runs.PASSED, 0), outcomes.get(runs.FAILED, 0)
    errored = sum(outcomes.values()) - passed - failed
    return ResultCounts(total=passed + failed + errored, errored=errored, failed=failed, passed=passed)
