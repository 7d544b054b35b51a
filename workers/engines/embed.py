"""Embeddings in this process, on sentence-transformers; `workers.engines.batching` is how they are computed together.

Importing this module does not import torch; `start` does.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jobs.requests.endpoints import EMBEDDINGS
from workers.engines.batching import BatchingEngine
from workers.engines.embed_model import SentenceModel
from workers.engines.embed_request import Asked, check_lengths, read, write
from workers.engines.embed_runtime import Chooser, Place
from workers.engines.encoder_pool import TOKEN_CHARACTERS, Job, Piece
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

    def _read(self, model: SentenceModel, body: Mapping[str, Any]) -> tuple[Asked, Sequence[int]]:
        asked = read(dict(body), model)
        return asked, [len(one) if isinstance(one, str) else len(one) * TOKEN_CHARACTERS for one in asked.inputs]

    def _tokenise(self, model: SentenceModel, pieces: Sequence[Piece]) -> list[list[Any]]:
        return _tokenise(model, pieces)

    def _fit(self, model: SentenceModel, job: Job, inputs: list[Any]) -> list[Any]:
        if most := job.asked.most:
            before = len(job.lengths)
            cut = job.asked.cut
            job.truncated += [n for n, one in enumerate(inputs, before) if len(one) > most or n in cut]
            inputs = [model.cut(one, most) for one in inputs]
        check_lengths([*job.lengths, *map(len, inputs)], model.longest)
        return inputs

    def _forward(self, model: SentenceModel, batch: list[Any]) -> Any:
        return model.embed(batch)

    def _write(self, job: Job) -> Answer:
        return write(job.asked, self._names[0], job.found, tuple(job.lengths), job.truncated)


def _tokenise(model: SentenceModel, pieces: Sequence[Piece]) -> list[list[Any]]:
    """All texts of all pieces in one call: the tokenizer runs them in parallel."""
    inputs = [(piece.job.asked, piece.job.asked.inputs[piece.first : piece.last]) for piece in pieces]
    texts = [one for _, some in inputs for one in some if isinstance(one, str)]
    ids = iter(model.tokens_of(texts) if texts else [])
    return [
        [next(ids) if isinstance(one, str) else model.framed(one, asked.prompt) for one in some]
        for asked, some in inputs
    ]
