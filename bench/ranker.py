"""A re-ranking model to measure with: none comes packaged, and no hub can be reached, so one is made here.

    docstrings of installed packages ─▶ (first sentence, what is left without it)
        ─▶ to each three of the texts that MiniLM takes for nearest, as wrong ones
        ─▶ MiniLM with a head of its own, cross-entropy over each four ─▶ a folder, kept

Nothing that is judged is among them: those are RFCs, or the standard library. It is a small model and has seen some
thousand pairs for some minutes, so what it finds says how re-ranking works here and what it costs; of a model that was
trained on half a million questions it says little. Seed and order are fixed; other packages make another model.

    python -m bench.ranker FOLDER [--groups N]      what the bench runs, in a process of its own
"""

import argparse
import ast
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.judged import first_sentence
from cli.up.procfile import CODE
from jobs.settings import Settings
from workers.engines.model_folders import MINILM, QUIET, materialise

GROUPS = 2400
_WRONG = 3  # wrong texts for each right one
_GROUPS_PER_STEP = 8  # groups of a training step
_LONGEST = 160  # tokens of a pair
_RATE = 5e-5
_SEED = 7
_RECIPE = 1
_NEAREST = range(2, 25)  # ranks of wrong texts; the nearest may be right as well
_MOST_PER_FILE = 6
_QUERY, _TEXT = range(40, 300), range(200, 4000)  # characters

Pair = tuple[str, str]


def kept(groups: int = GROUPS) -> Path:
    """Return the folder of the model. Train the model if the folder does not exist."""
    recipe = [_RECIPE, groups, _WRONG, _GROUPS_PER_STEP, _LONGEST, _RATE, _SEED]
    key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:12]
    folder = Settings().data_dir.absolute() / "models" / f"bench-ranker-{key}"
    if not (folder / "config.json").exists():
        command = [sys.executable, "-m", "bench.ranker", str(folder), "--groups", str(groups)]
        subprocess.run(["nice", "-n", "10", *command], cwd=CODE, env=os.environ | QUIET, check=True)
    return folder


def pairs(root: Path, most: int) -> list[Pair]:
    """Yield pairs from the files below a folder, in an order that depends on the files only."""
    found: dict[str, str] = {}
    texts = set[str]()
    for path in sorted(root.rglob("*.py"), key=lambda path: _digest(path.relative_to(root))):
        for query, text in _of_file(path):
            if query not in found and text not in texts:
                found[query] = text
                texts.add(text)
        if len(found) >= most:
            break
    return list(found.items())[:most]


def _digest(path: Path) -> bytes:
    return hashlib.sha256(str(path).encode()).digest()


def _of_file(path: Path) -> Iterator[Pair]:
    try:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return  # a template, or another version's syntax
    taken = 0
    for node in nodes:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            continue
        pair = _pair(ast.get_docstring(node) or "")
        if pair and taken < _MOST_PER_FILE:
            taken += 1
            yield pair


def _pair(docstring: str) -> Pair | None:
    query = first_sentence(docstring)
    text = re.sub(r"\s+", " ", docstring).replace(query, " ").strip()
    return (query, text) if len(query) in _QUERY and len(text) in _TEXT else None


def grouped(chosen: Sequence[Pair], encode: Any) -> list[tuple[str, list[str]]]:
    """Yield each query with its texts, the right one first."""
    import numpy as np

    queries, texts = encode([query for query, _ in chosen]), encode([text for _, text in chosen])
    draw = random.Random(_SEED)
    groups = []
    for n, (query, text) in enumerate(chosen):
        nearest = np.argsort(-(texts @ queries[n]), kind="stable")
        others = [int(m) for m in nearest[: _NEAREST.stop + 1] if m != n][_NEAREST.start :]
        groups.append((query, [text, *(chosen[m][1] for m in draw.sample(others, _WRONG))]))
    draw.shuffle(groups)
    return groups


def train(folder: Path, groups: int) -> None:
    import torch
    from sentence_transformers import CrossEncoder, SentenceTransformer

    began = time.monotonic()
    base = str(materialise(MINILM, folder.parent))
    chosen = pairs(Path(sysconfig.get_path("purelib")), groups)
    embedder = SentenceTransformer(base, device="cpu")
    found = grouped(chosen, lambda texts: embedder.encode(texts, normalize_embeddings=True))
    print(f"{len(found)} groups of {1 + _WRONG} after {time.monotonic() - began:.0f} s", flush=True)
    torch.manual_seed(_SEED)
    model = CrossEncoder(base, num_labels=1, device="cpu", local_files_only=True)
    steps = [found[at : at + _GROUPS_PER_STEP] for at in range(0, len(found), _GROUPS_PER_STEP)]
    _learn(torch, model, steps)
    scratch = folder.with_name(f".{folder.name}-{os.getpid()}")
    model.save_pretrained(str(scratch))
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
    print(f"trained within {time.monotonic() - began:.0f} s", flush=True)


def _learn(torch: Any, model: Any, steps: Sequence[Sequence[tuple[str, list[str]]]]) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE)
    warm = max(1, len(steps) // 10)
    pace = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / warm, (len(steps) - n) / max(1, len(steps) - warm))
    )
    lost = right = 0.0
    for n, step in enumerate(steps, 1):
        queries = [query for query, texts in step for _ in texts]
        texts = [text for _, texts in step for text in texts]
        given = model.tokenizer(
            queries, texts, truncation="longest_first", max_length=_LONGEST, padding=True, return_tensors="pt"
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = model(dict(given))["scores"].reshape(len(step), -1)
        loss = torch.nn.functional.cross_entropy(scores.float(), torch.zeros(len(step), dtype=torch.long))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        pace.step()
        lost += float(loss.detach())
        right += float((scores.argmax(dim=1) == 0).float().mean())
        if n % 50 == 0:
            print(f"step {n} of {len(steps)}: loss {lost / 50:.3f}, right {right / 50:.2f}", flush=True)
            lost = right = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description="train the re-ranking model of `python -m bench retrieval`")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--groups", type=int, default=GROUPS)
    options = parser.parse_args()
    options.folder.parent.mkdir(parents=True, exist_ok=True)
    train(options.folder.absolute(), options.groups)


if __name__ == "__main__":
    main()
