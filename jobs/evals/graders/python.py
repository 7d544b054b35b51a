"""Run a client's code in the sandbox of a worker."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, Field

from jobs.evals.graders.base import MAX_SCORE, GradingCase, GradingParts, MissingPart, Thresholded, Values

MAX_SOURCE_BYTES: Final = 256 << 10
NO_SANDBOX: Final = MissingPart(
    "No worker of this deployment has the sandbox that this grader runs in: see `nightmill doctor`.",
    "sandbox_unavailable",
)
SANDBOX_UNKNOWN: Final = MissingPart(
    "No worker has said yet whether it has the sandbox that this grader runs in. Ask again in a moment; "
    "`nightmill doctor` says what keeps the workers of cpu.evaluate from it.",
    "sandbox_unknown",
    is_temporary=True,
)


def missing_sandbox(deployment: GradingParts) -> MissingPart | None:
    """Return why a grader that runs in the sandbox cannot be run; None where it can."""
    if deployment.runs_python is None:
        return SANDBOX_UNKNOWN
    return None if deployment.runs_python else NO_SANDBOX


def _check_size(source: str) -> str:
    if len(source.encode(errors="replace")) > MAX_SOURCE_BYTES:
        raise ValueError(f"A source has at most {MAX_SOURCE_BYTES} bytes.")
    return source


class PythonGrader(Thresholded):
    """Run `grade(sample, item)` of `source`, which returns a number. `image_tag` is accepted and has no effect."""

    is_openai: ClassVar[bool] = True
    scores: ClassVar[str] = f"what the code returns, up to ±{MAX_SCORE:g}"
    limits: ClassVar[str] = (
        f"{MAX_SOURCE_BYTES >> 10} KiB of source; [those of the sandbox](../guides/graders.md#python-graders)"
    )

    type: Literal["python"]
    source: Annotated[str, Field(min_length=1, max_length=MAX_SOURCE_BYTES), AfterValidator(_check_size)]
    image_tag: Annotated[str, Field(max_length=64)] | None = None

    def sources(self) -> Iterator[tuple[str, str]]:
        yield "source", self.source

    def missing(self, deployment: GradingParts) -> MissingPart | None:
        return missing_sandbox(deployment)

    def score(self, case: GradingCase) -> tuple[float, Values]:
        return case.run_python(self.source, case.item, case.sample), {}
