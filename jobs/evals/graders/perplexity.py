"""Pass texts that a model finds likely."""

import math
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from jobs.evals.graders.base import SAMPLE_PARSE, Finite, Grader, GradingCase, GradingError, Values

_MAX_LOSS: Final = 700.0  # nats a token: the perplexity of more is infinite
_MAX_TOKENS: Final = 1 << 40  # of a text


class Perplexity(Grader):
    """Pass texts whose perplexity is at most `max_perplexity`.

    The sample is that of a data source `perplexity`. The score is the mean log-likelihood of a token, so that a higher
    score is better: the perplexity is exp(-score).
    """

    is_likelihood: ClassVar[bool] = True
    scores: ClassVar[str] = "the mean log-likelihood of a token, in nats"

    type: Literal["perplexity"]
    max_perplexity: Annotated[Finite, Field(ge=1)]

    @property
    def threshold(self) -> float:
        return -math.log(self.max_perplexity)

    def score(self, case: GradingCase) -> tuple[float, Values]:
        """Return the mean log-likelihood, with the perplexity and the tokens. The sample may be a client's own."""
        match case.sample.get("output_json"):
            case {"mean_log_likelihood": float() | int() as score, "tokens": int() as tokens} if (
                -_MAX_LOSS <= score <= 0 < tokens <= _MAX_TOKENS
            ):
                return float(score), {"perplexity": math.exp(-score), "tokens": tokens}
        raise GradingError(SAMPLE_PARSE, "The sample is not the likelihood of a text.")
