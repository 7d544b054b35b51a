"""BERTScore of a text and its reference, by the embeddings of their tokens (Zhang and others, ICLR 2020).

    text, reference ─▶ a vector a token, of the model's last layer ─▶ cosines of all pairs
                          precision: the mean of the best cosine of each token of the text
                          recall: the same for the reference          F1: their harmonic mean

The values are those of the library bert-score without weights by rarity and without rescaling: a token may match the
special tokens around the other text, which do not count themselves. Texts are cut off at the model's length.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from workers.engines.encoders.batching import Unacceptable
from workers.engines.encoders.embed_model import SentenceModel
from workers.engines.port import Answer, Usage

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_CHARACTERS = 100_000


@dataclass(frozen=True, slots=True)
class BertScore:
    """The F1 is 0 where nothing matches."""

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def read(body: dict[str, Any]) -> tuple[str, str]:
    """Return the text and its reference. Raises Unacceptable."""
    match body.get("input"):
        case [str() as text, str() as reference] if max(len(text), len(reference)) <= MAX_CHARACTERS:
            return text, reference
    raise Unacceptable(f"input must be a text and its reference, of at most {MAX_CHARACTERS} characters each.")


def answer(model: SentenceModel, name: str, text: str, reference: str) -> Answer:
    """Return the answer of an engine with `model`. Raises Unacceptable."""
    if model.layers is None:
        raise Unacceptable(f"The model '{name}' has no layers of tokens.", param="model")
    ids = [model.cut(tokens, model.longest) for tokens in model.tokens_of([text, reference])]
    before, after = model.special_tokens
    score = match(model.token_vectors(ids[0]), model.token_vectors(ids[1]), before, after)
    tokens = sum(map(len, ids))
    body = {
        "object": "bertscore",
        "model": name,
        "layer": model.layers,
        "precision": score.precision,
        "recall": score.recall,
        "f1": score.f1,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return Answer(200, msgspec.json.encode(body), Usage(tokens))


def match(text: "NDArray[Any]", reference: "NDArray[Any]", before: int, after: int) -> BertScore:
    """Return the score of the vectors of two texts, of length 1, with so many special tokens before and after each."""
    cosines = text @ reference.T
    best_of_text, best_of_reference = (
        best[before : len(best) - after] for best in (cosines.max(axis=1), cosines.max(axis=0))
    )
    if not len(best_of_text) or not len(best_of_reference):
        return BertScore(0.0, 0.0)
    return BertScore(float(best_of_text.mean()), float(best_of_reference.mean()))
