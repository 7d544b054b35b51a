"""BERTScore: by hand over given vectors, and by the library bert-score over the packaged MiniLM."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from jobs.requests.endpoints import BERTSCORE
from workers.engines.encoders import bertscore
from workers.engines.encoders.embed import EmbedEngine
from workers.engines.model_folders import MINILM, materialise
from workers.engines.port import Request

FIXTURE = json.loads(Path(__file__).with_name("bertscore.json").read_text())
#: Special tokens before and behind two tokens: at right angles, or 60 degrees from the first.
START, END = [0.0, 0.0, 1.0], [0.0, 0.0, -1.0]
EAST, NORTH, BETWEEN = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.75**0.5, 0.0]


def vectors(*rows: list[float]) -> np.ndarray:
    return np.array([START, *rows, END])


@pytest.mark.parametrize(
    ("text", "reference", "precision", "recall"),
    [
        ([EAST, NORTH], [EAST, NORTH], 1.0, 1.0),
        ([EAST], [NORTH], 0.0, 0.0),
        ([BETWEEN], [EAST, NORTH], 0.75**0.5, (0.5 + 0.75**0.5) / 2),
        ([EAST, EAST, NORTH], [EAST], 2 / 3, 1.0),
        ([], [EAST], 0.0, 0.0),
    ],
)
def test_score_is_the_mean_of_the_best_cosines(
    text: list[list[float]], reference: list[list[float]], precision: float, recall: float
) -> None:
    score = bertscore.match(vectors(*text), vectors(*reference), 1, 1)

    assert (score.precision, score.recall) == (pytest.approx(precision), pytest.approx(recall))
    total = precision + recall
    assert score.f1 == pytest.approx(2 * precision * recall / total if total else 0.0)


@pytest.mark.verify
@pytest.mark.timeout(180)
async def test_engine_gives_the_values_of_bert_score(tmp_path: Path) -> None:
    engine = EmbedEngine(lambda: str(materialise(MINILM, tmp_path)), ["mini"], args={"dtype": "float32"})
    try:
        for pair in FIXTURE["pairs"]:
            body = {"model": "mini", "input": [pair["text"], pair["reference"]]}
            answer = await engine.answer(Request(BERTSCORE, body, "req"))
            value = msgspec.json.decode(answer.body)

            assert (answer.status, value["model"], value["layer"]) == (200, "mini", FIXTURE["layer"])
            for name in ("precision", "recall", "f1"):
                assert value[name] == pytest.approx(pair[name], abs=1e-4), pair
        for wrong in ("x", ["x"], ["x", 1], ["x", "y" * 100_001], None):
            answer = await engine.answer(Request(BERTSCORE, {"model": "mini", "input": wrong}, "req"))
            assert answer.status == 400
    finally:
        await engine.close()
