"""Forgetting: how well a model predicts general text before and after training, in nats a token.

The text is 64 docstrings of Python's standard library, which every machine has, or the rows of a file of the client's.
What was trained for does not show here; what was lost does.
"""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from workers.engines.training import rows

#: Objects of the standard library, of Python 3.11 and later, by module.
DOCSTRINGS: Final[Mapping[str, str]] = {
    "argparse": "Action ArgumentParser",
    "ast": "dump NodeVisitor NodeTransformer",
    "base64": "b64decode a85decode",
    "collections": "defaultdict ChainMap",
    "contextlib": "contextmanager ExitStack",
    "dataclasses": "field dataclass asdict make_dataclass",
    "difflib": "SequenceMatcher get_close_matches Differ unified_diff ndiff",
    "fractions": "Fraction",
    "functools": "update_wrapper lru_cache",
    "heapq": "merge",
    "inspect": "getmembers_static unwrap getfullargspec Parameter Signature",
    "io": "IOBase",
    "itertools": "islice product",
    "json": "dump dumps load loads",
    "logging": "Formatter Logger basicConfig",
    "os": "walk renames",
    "re": "subn split",
    "shutil": "copytree rmtree move make_archive",
    "socket": "create_connection",
    "statistics": "harmonic_mean quantiles variance linear_regression",
    "subprocess": "check_output run Popen",
    "tempfile": "mkstemp NamedTemporaryFile",
    "textwrap": "TextWrapper",
    "tokenize": "detect_encoding",
    "urllib.parse": "urlparse parse_qs quote urlencode",
    "warnings": "catch_warnings",
}
_DOCSTRING_TOKENS: Final = 64
_ROW_TOKENS: Final = 1024


def docstrings() -> list[str]:
    """Return the 64 docstrings."""
    return [
        inspect.cleandoc(getattr(importlib.import_module(module), name).__doc__)
        for module, names in DOCSTRINGS.items()
        for name in names.split()
    ]


def general_text(tokenizer: Any, path: str | None, longest: int) -> list[dict[str, list[int]]]:
    """Return ids and labels of the rows of a file, or of the docstrings. Raises RowRefused."""
    if path is None:
        limit = min(_DOCSTRING_TOKENS, longest)
        ids = [tokenizer(text, truncation=True, max_length=limit)["input_ids"] for text in docstrings()]
        return [{"input_ids": text, "labels": text} for text in ids]
    given = rows.read(Path(path))
    encoded = (rows.encode_supervised(tokenizer, line, row, longest, truncate=True) for line, row in given)
    return [{name: ids[:_ROW_TOKENS] for name, ids in row.items()} for row in encoded]


def mean_nll(model: Any, texts: Sequence[Mapping[str, Sequence[int]]]) -> float:
    """Return the mean negative log-likelihood of the labelled tokens. Training goes on afterwards as before."""
    total, count, training = 0.0, 0, model.training
    model.eval()
    try:
        with torch.inference_mode():
            for text in texts:
                ids = torch.tensor([text["input_ids"]], device=model.device)
                labels = torch.tensor(text["labels"][1:], device=model.device)
                logits = model(input_ids=ids).logits[0, :-1].float()
                loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=rows.IGNORED, reduction="sum")
                total, count = total + float(loss), count + int((labels != rows.IGNORED).sum())
    finally:
        model.train(training)
    return total / max(1, count)
