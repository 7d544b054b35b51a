"""Measure how alike two texts are, by `jobs.evals.text_metrics` or by embeddings."""

from collections.abc import Sequence
from typing import Any, ClassVar, Final, Literal

from jobs.evals import text_metrics
from jobs.evals.graders.base import (
    JUDGE_PARSE,
    OTHER,
    GradingCase,
    GradingError,
    GradingParts,
    MissingPart,
    Template,
    Thresholded,
    Values,
)
from jobs.requests.endpoints import BERTSCORE, EMBEDDINGS

#: The metrics that the deployment's embedding model computes, or whose vectors it gives.
_ENDPOINTS: Final = {"cosine": EMBEDDINGS, "bertscore": BERTSCORE}
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


class TextSimilarity(Thresholded):
    """Measure how alike `input` and `reference` are."""

    is_openai: ClassVar[bool] = True
    scores: ClassVar[str] = "0 to 1; of `cosine` from -1"
    limits: ClassVar[str] = (
        f"{text_metrics.MAX_CHARACTERS:,} characters of a text, of `fuzzy_match` and `meteor` "
        f"{text_metrics.MAX_CHARACTERS_QUADRATIC:,}; for all of an item {text_metrics.MAX_SECONDS:g} seconds of a "
        "processor, as estimated by the lengths"
    )
    kind_field: ClassVar[str] = "evaluation_metric"

    type: Literal["text_similarity"]
    input: Template
    evaluation_metric: Metric
    reference: Template

    def models(self, embedding_model: str | None) -> list[tuple[str, str]]:
        endpoint = _ENDPOINTS.get(self.evaluation_metric)
        return [(endpoint, embedding_model)] if endpoint and embedding_model is not None else []

    def missing(self, deployment: GradingParts) -> MissingPart | None:
        message = {
            "meteor": "" if deployment.has_wordnet else _NO_WORDNET,
            "bertscore": "" if deployment.encodes_tokens else _NO_TOKENS,
            "cosine": "" if deployment.embedding_model is not None else _NO_EMBEDDINGS,
        }.get(self.evaluation_metric)
        return MissingPart(message, "grader_unavailable") if message else None

    def request(self, case: GradingCase) -> tuple[str, dict[str, Any]] | None:
        endpoint, model = _ENDPOINTS.get(self.evaluation_metric), case.ports.embedding_model
        if endpoint is None or not model:
            return None
        body = {"model": model, "input": [case.render(self.input), case.render(self.reference)]}
        return endpoint, body if endpoint == BERTSCORE else body | {"encoding_format": "float"}

    def score(self, case: GradingCase) -> tuple[float, Values]:
        text, reference = case.render(self.input), case.render(self.reference)
        try:
            match self.evaluation_metric:
                case "bertscore":
                    return _bertscore(case.answer_body())
                case "cosine":
                    return _cosine(case), {}
            wordnet = case.ports.wordnet() if case.ports.wordnet and self.evaluation_metric == "meteor" else None
            take = case.budget.take
            return text_metrics.similarity(self.evaluation_metric, text, reference, wordnet, take), {}
        except text_metrics.MetricUnavailable as error:
            raise GradingError(OTHER, str(error)) from error


_NO_WORDNET: Final = "The metric 'meteor' needs WordNet: install Debian's wordnet-base, or set NIGHTMILL_WORDNET."
_NO_TOKENS: Final = "The metric 'bertscore' needs an embedding model of this deployment's own, and there is none."
_NO_EMBEDDINGS: Final = "The metric 'cosine' needs a model for embeddings, and this deployment has none."


def _bertscore(body: Values) -> tuple[float, Values]:
    """Return the F1 of BERTScore, with the precision, the recall, the model and its layer."""
    try:
        details = {name: body[name] for name in ("model", "layer", "precision", "recall")}
        return float(body["f1"]), details
    except (KeyError, TypeError, ValueError) as error:
        raise GradingError(JUDGE_PARSE, "The embedding model answered no BERTScore.") from error


def _cosine(case: GradingCase) -> float:
    if case.ports.embedding_model is None:
        raise GradingError(OTHER, "This deployment has no embedding model.")
    return text_metrics.cosine(*_vectors(case.answer_body()))


def _vectors(body: Values) -> Sequence[Sequence[float]]:
    try:
        vectors = [[float(number) for number in row["embedding"]] for row in body["data"]]
    except (KeyError, TypeError, ValueError) as error:
        raise GradingError(JUDGE_PARSE, "The embedding model answered no vectors.") from error
    if len(vectors) != 2 or len(vectors[0]) != len(vectors[1]):
        raise GradingError(JUDGE_PARSE, "The embedding model did not answer two vectors of one length.")
    return vectors
