"""Write 200 random rankings with the values of ir-measures: `python write_rankings.py rankings.json`.

Run it in an environment that has ir-measures and none of our code.
"""

import json
import random
import sys
from importlib.metadata import version
from pathlib import Path

import ir_measures

CUTOFFS = (1, 5, 10)
MEASURES = {
    f"{name}@{k}": ir_measures.parse_measure(f"{theirs}@{k}")
    for name, theirs in {"recall": "R", "precision": "P", "ndcg": "nDCG", "mrr": "RR", "map": "AP"}.items()
    for k in CUTOFFS
}


def main() -> None:
    draw = random.Random(23)
    rankings = []
    for _ in range(200):
        names = [f"d{n}" for n in range(draw.randint(3, 30))]
        grades = {name: draw.choice((0, 0, 0, 1, 2, 3)) for name in names if draw.random() < 0.7} | {"d0": 1}
        rankings.append({"ranked": draw.sample(names, draw.randint(1, len(names))), "grades": grades})
    judgements = {str(n): ranking["grades"] for n, ranking in enumerate(rankings)}
    run = {
        str(n): {name: float(-rank) for rank, name in enumerate(ranking["ranked"])}
        for n, ranking in enumerate(rankings)
    }
    names = {measure: name for name, measure in MEASURES.items()}
    for ranking in rankings:
        ranking["values"] = {}
    for value in ir_measures.iter_calc(list(names), judgements, run):
        rankings[int(value.query_id)]["values"][names[value.measure]] = round(value.value, 9)
    fixture = {"versions": {"ir-measures": version("ir-measures")}, "rankings": rankings}
    Path(sys.argv[1]).write_text(json.dumps(fixture, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
