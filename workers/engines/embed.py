"""Embeddings in this process, on sentence-transformers; `workers.engines.batching` is how they are computed together.

Importing this module does not import torch; `start` does.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jobs.endpoints import EMBEDDINGS
from workers.engines.batching import BatchingEngine, Job
from workers.engines.embed_model import SentenceModel
from workers.engines.embed_request import Asked, check_lengths, read, write
from workers.engines.embed_runtime import Chooser, Place
from workers.engines.port import Answer


class EmbedEngine(BatchingEngine[SentenceModel]):
    """`source` is a folder or a hub's name; a callable finds it out at the start, in the worker thread.

    `place` is where the runtime's choice is kept; without one, the arguments alone decide.
    """

    url = EMBEDDINGS

    def __init__(
        self,
        source: str | Callable[[], str],
        names: Sequence[str],
        *,
        revision: str | None = None,
        args: Mapping[str, Any] | None = None,
        place: Place | None = None,
    ) -> None:
        super().__init__(source, names, revision=revision, args=args)
        self._chooser = Chooser(self._names[0], place)

    def _load(self, source: str) -> SentenceModel:
        return self._chooser.load(source, self._revision, self._args)

    def _closing(self) -> None:
        self._chooser.close()

    def _read(self, model: SentenceModel, body: Mapping[str, Any]) -> tuple[Asked, int]:
        asked = read(dict(body), model)
        return asked, len(asked.inputs)

    def _tokenise(self, model: SentenceModel, asked: list[Any]) -> list[list[Any]]:
        return _tokenise(model, asked)

    def _fit(self, model: SentenceModel, job: Job, inputs: list[Any]) -> list[Any]:
        if most := job.asked.most:
            job.truncated = [which for which, one in enumerate(inputs) if len(one) > most]
            inputs = [model.cut(one, most) for one in inputs]
        check_lengths([len(one) for one in inputs], model.longest)
        return inputs

    def _forward(self, model: SentenceModel, batch: list[Any]) -> Any:
        return model.embed(batch)

    def _write(self, job: Job) -> Answer:
        return write(job.asked, self._names[0], job.found, job.lengths, job.truncated)


def _tokenise(model: SentenceModel, many: list[Asked]) -> list[list[Any]]:
    """All texts of all requests in one call: the tokenizer runs them in parallel."""
    texts = [text for asked in many for text in asked.inputs if isinstance(text, str)]
    ids = iter(model.tokens_of(texts) if texts else [])
    return [
        [next(ids) if isinstance(one, str) else model.framed(one, asked.prompt) for one in asked.inputs]
        for asked in many
    ]
