"""Messages with placeholders, as a judge or a sampled model gets them."""

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from jobs.evals.graders.base import Definition, GradingCase, Template

_MAX_MESSAGES: Final = 100
_MAX_PARTS: Final = 100


class TextPart(Definition):
    """A text in a message to a judge."""

    type: Literal["input_text", "output_text"]
    text: Template

    @property
    def template(self) -> str:
        return self.text

    def fill(self, case: GradingCase) -> dict[str, Any]:
        """Return the part as chat completions have it, with the values of its placeholders. Raises: GradingError."""
        return {"type": "text", "text": case.render(self.text)}


class ImagePart(Definition):
    """An image in a message to a judge."""

    type: Literal["input_image"]
    image_url: Template
    detail: Literal["auto", "low", "high"] | None = None

    @property
    def template(self) -> str:
        return self.image_url

    def fill(self, case: GradingCase) -> dict[str, Any]:
        detail = {"detail": self.detail} if self.detail else {}
        return {"type": "image_url", "image_url": {"url": case.render(self.image_url), **detail}}


class AudioData(Definition):
    """A recording in base64."""

    data: Template
    format: Literal["mp3", "wav"]


class AudioPart(Definition):
    """A recording in a message to a judge."""

    type: Literal["input_audio"]
    input_audio: AudioData

    @property
    def template(self) -> str:
        return self.input_audio.data

    def fill(self, case: GradingCase) -> dict[str, Any]:
        audio = self.input_audio
        return {"type": "input_audio", "input_audio": {"data": case.render(audio.data), "format": audio.format}}


Part = Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]


class Message(Definition):
    """A message to a judge."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Template | Part | Annotated[list[Template | Part], Field(min_length=1, max_length=_MAX_PARTS)]
    type: Literal["message"] | None = None

    @property
    def parts(self) -> list[TextPart | ImagePart | AudioPart]:
        """Return the parts of the message. A text that stands for a part is one."""
        parts = self.content if isinstance(self.content, list) else [self.content]
        return [
            TextPart.model_construct(type="input_text", text=part) if isinstance(part, str) else part for part in parts
        ]

    def fill(self, case: GradingCase) -> dict[str, Any]:
        """Return the message as chat completions have it, with the values of its placeholders. Raises: GradingError."""
        content: Any = [part.fill(case) for part in self.parts]
        if isinstance(self.content, str):
            content = content[0]["text"]
        return {"role": self.role, "content": content}


Messages = Annotated[list[Message], Field(min_length=1, max_length=_MAX_MESSAGES)]
