"""The bodies of requests about prompts, and the objects that clients see."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from api.http.bodies import Body, Many
from api.http.fields import Metadata, unix_seconds
from jobs.prompts import rendering, versions
from jobs.prompts.tables import Prompt, PromptVersion

MAX_LABELS = 32
_Name = Annotated[str, Field(min_length=1, max_length=255)]
_Detail = Literal["auto", "low", "high", "original"]

# ── requests ──


class TextInput(Body):
    type: Literal["input_text"]
    text: str


class ImageInput(Body):
    """A picture, by its URL, as a data URL, or a file of the project."""

    type: Literal["input_image"]
    image_url: str | None = None
    file_id: str | None = None
    detail: _Detail | None = None


class FileInput(Body):
    """A document, by its URL, as data, or a file of the project."""

    type: Literal["input_file"]
    file_data: str | None = None
    file_id: str | None = None
    file_url: str | None = None
    filename: str | None = None
    detail: _Detail | None = None


ContentPart = Annotated[TextInput | ImageInput | FileInput, Field(discriminator="type")]


class PromptMessage(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[Many[ContentPart], Field(min_length=1)]


class TextOptions(Body):
    """The format of the answer, as responses have it."""

    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class PromptVariable(Body):
    """A variable. One that is not required and not given is an empty text."""

    name: Annotated[str, Field(pattern=f"^{rendering.NAME}$")]
    type: Literal["string", "number", "boolean", "json", "image", "file"] = "string"
    required: bool = True
    default: Any = Field(default=None, description="The value where a request gives none.")


def _read_number(value: Any) -> Any:
    """Return the number of a version that is written as the API shows it; any other value as it is."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 9 else value


#: The number of a version: `"2"` as the API shows it, or 2.
Number = Annotated[
    int,
    Field(ge=1, le=versions.MAX_NUMBER, description="A number, or its digits."),
    BeforeValidator(_read_number, json_schema_input_type=int | str),
]
Label = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$")]


class PromptFields(Body):
    """The content of a version. `{{name}}` in instructions and messages stands for the variable of that name."""

    model: _Name | None = None
    instructions: str | None = None
    messages: Many[PromptMessage] = Field(default=[])
    tools: Many[dict[str, Any]] = Field(default=[], max_length=128)
    tool_choice: str | dict[str, Any] | None = None
    text: TextOptions | None = None
    parameters: dict[str, Any] = Field(default={}, description="Fields of a response: `temperature`, `reasoning` …")
    variables: Many[PromptVariable] = Field(default=[], max_length=rendering.MAX_VARIABLES)

    def content(self) -> dict[str, Any]:
        """Return the fields of the content that are not null."""
        return self.model_dump(mode="json", exclude_none=True, include=set(PromptFields.model_fields))


class CreateVersion(PromptFields):
    version: Number | None = Field(default=None, description="The number of an imported version. Else the next one.")


class CreatePrompt(CreateVersion):
    """A prompt with its first version. With `id` it is one that was made elsewhere, which keeps its id."""

    id: Annotated[str, Field(pattern="^pmpt_[A-Za-z0-9_-]{1,59}$")] | None = None
    name: _Name | None = None
    metadata: Metadata | None = None


class UpdatePrompt(Body):
    """The fields that are left out stay as they are."""

    name: _Name | None = None
    metadata: Metadata | None = None
    default_version: Number | None = None
    labels: Annotated[dict[Label, Number | None], Field(max_length=MAX_LABELS)] | None = Field(
        default=None, description="All labels: those that are left out, or null, are removed."
    )


# ── objects ──


class PromptVersionObject(BaseModel):
    """A version of a prompt. `hash` is the SHA-256 of its content, `created_by` the key that made it."""

    object: Literal["prompt.version"] = "prompt.version"
    prompt_id: str
    version: str
    created_at: int
    created_by: str | None
    hash: str
    model: str | None
    instructions: str | None
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    tool_choice: Any
    text: dict[str, Any] | None
    parameters: dict[str, Any]
    variables: list[dict[str, Any]]


class PromptObject(BaseModel):
    """A prompt, with its default version. `imported_from` is the id of one that was made elsewhere."""

    id: str
    object: Literal["prompt"] = "prompt"
    created_at: int
    name: str | None
    metadata: dict[str, str]
    default_version: str
    latest_version: str
    labels: dict[str, str]
    archived_at: int | None
    imported_from: str | None
    version: PromptVersionObject


def show_version(version: PromptVersion) -> PromptVersionObject:
    content: Mapping[str, Any] = version.content
    return PromptVersionObject(
        prompt_id=version.prompt_id,
        version=str(version.version),
        created_at=int(version.created_at),
        created_by=version.created_by,
        hash=version.hash,
        **content,
    )


def show_prompt(prompt: Prompt, version: PromptVersion) -> PromptObject:
    return PromptObject(
        id=prompt.id,
        created_at=int(prompt.created_at),
        name=prompt.name,
        metadata=prompt.metadata_,
        default_version=str(prompt.default_version),
        latest_version=str(prompt.latest_version),
        labels={name: str(number) for name, number in prompt.labels.items()},
        archived_at=unix_seconds(prompt.archived_at),
        imported_from=prompt.imported_from,
        version=show_version(version),
    )
