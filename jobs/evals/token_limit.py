"""The limit of an answer's tokens in sampling parameters, which OpenAI spells in two ways.

Its reference and guides have `max_completions_tokens` in graders and in runs, its SDK has it in graders alone.
"""

from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, Field, model_validator

_NAME: Final = "max_completion_tokens"
_OTHER_NAME: Final = "max_completions_tokens"
_Tokens = Annotated[int, Field(ge=1, lt=1 << 31)]


class TokenLimit(BaseModel):
    """Base of sampling parameters: the limit by either of its names, or by both where they say the same."""

    max_completion_tokens: _Tokens | None = None
    max_completions_tokens: _Tokens | None = Field(default=None, description=f"The same as `{_NAME}`.")

    @model_validator(mode="after")
    def _check_limits_agree(self) -> Self:
        limits = {self.max_completion_tokens, self.max_completions_tokens} - {None}
        if len(limits) > 1:
            raise ValueError(f"'{_NAME}' and '{_OTHER_NAME}' are the same parameter, and have different values.")
        return self

    def to_params(self) -> dict[str, Any]:
        """Return the parameters that are not null, the limit by the name that it has in requests."""
        params = self.model_dump(mode="json", exclude_none=True)
        limit = params.pop(_OTHER_NAME, None)
        return params if limit is None else {**params, _NAME: limit}
