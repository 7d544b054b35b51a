"""Write pairs of texts with the values of bert-score: `python write_bertscore.py MODEL_FOLDER LAYERS bertscore.json`.

Run it in an environment that has bert-score and none of our code. The folder has the model all-MiniLM-L6-v2.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import bert_score

PAIRS = (
    ("The cat sat on the mat.", "The cat sat on the mat."),
    ("A cat was sitting on the rug.", "The cat sat on the mat."),
    ("Stock prices fell sharply on Monday.", "The cat sat on the mat."),
    ("Paris", "The capital of France is Paris, which has about two million inhabitants."),
    ("The capital of France is Paris, which has about two million inhabitants.", "Paris"),
    ("Leave is thirty days a year; unused days expire in March.", "Employees may take 30 days of leave each year."),
    ("Ünïcödé and 図書館 are written here.", "Unicode and a library are written here."),
    ("def f(x):\n    return x + 1", "A function that adds one to its argument."),
)


def main(folder: str, layers: str, path: str) -> None:
    texts, references = zip(*PAIRS, strict=True)
    values = bert_score.score(list(texts), list(references), model_type=folder, num_layers=int(layers), device="cpu")
    rows = [
        {"text": text, "reference": reference, "precision": p, "recall": r, "f1": f}
        for (text, reference), p, r, f in zip(PAIRS, *(value.tolist() for value in values), strict=True)
    ]
    versions = {name: version(name) for name in ("bert-score", "transformers", "torch")}
    fixture = {"versions": versions, "model": "all-minilm-l6-v2", "layer": int(layers), "pairs": rows}
    Path(path).write_text(json.dumps(fixture, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
