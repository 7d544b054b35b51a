"""A training that is repeated: the request of the new job, and how its result differs from the old one.

version ─▶ its job, with the numbers that `auto` stood for ─▶ the same request again ─▶ new version
    both ─▶ loss of each step · SHA-256 of each file · values of each tensor · data, options, libraries, hardware
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from cli.client.server import ObjectNotFound, Server
from cli.client.version_comparison import Version, compare_versions
from cli.errors import CliError

if TYPE_CHECKING:
    import numpy as np

_SAME: Final = ("base", "parent", "seed", "method", "data.", "hyperparameters.", "training.", "versions.", "hardware.")
_SAME_RUN: Final = ("base.", "run.dtype", "run.threads")
#: The dtypes of safetensors whose values are compared, as numpy names them; bfloat16 is the upper half of a float32.
_DTYPES: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def request_of(version: Version, job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request of a job that trains what the job of a version has trained. Raises CliError.

    `auto` is replaced by the numbers and the method that it stood for, an alias by its model.
    """
    if version["data_erased"]:
        raise CliError(f"the data that {version['id']} was trained on were erased; nothing was submitted")
    names = ("training_file", "validation_file", "general_file", "validation", "early_stopping", "training", "seed")
    body = {name: job[name] for name in names if job[name] is not None}
    if job["user_provided_suffix"]:
        body["suffix"] = job["user_provided_suffix"]
    model = version["parent"] or version["base"]
    return body | {"model": model, "method": job["method"], "peft": version["method"]}


def losses_of(server: Server, job: Mapping[str, Any]) -> dict[int, float]:
    """Return the training loss of each step, from the CSV of a job; none where that file is gone."""
    with TemporaryDirectory() as folder, suppress(ObjectNotFound):
        path = Path(folder) / "steps.csv"
        for file_id in job["result_files"][:1]:
            server.fetch(f"/files/{file_id}/content", path)
            with path.open(newline="") as file:
                return {int(row["step"]): float(row["train_loss"]) for row in csv.DictReader(file)}
    return {}


def report_of(server: Server, old: Version, new: Version, losses: Sequence[Mapping[int, float]]) -> dict[str, Any]:
    """Return how a repeated training differs from the first one. `losses` are those of both by step."""
    gaps = {step: abs(losses[0][step] - losses[1][step]) for step in sorted({*losses[0]} & {*losses[1]})}
    files = [version["manifest"]["files"] for version in (old, new)]
    different = [name for name in sorted({*files[0], *files[1]}) if files[0].get(name) != files[1].get(name)]
    return {
        "model": old["id"],
        "reproduction": new["id"],
        "steps": [len(side) for side in losses],
        "first_different_step": next((step for step, gap in gaps.items() if gap), None),
        "max_loss_difference": max(gaps.values(), default=None),
        "different_files": different,
        "max_tensor_differences": _compare_tensors(server, old["id"], new["id"], different),
        "not_the_same": [
            row for row in compare_versions(old, new) if row["differs"] and row["fact"].startswith((*_SAME, *_SAME_RUN))
        ],
    }


def describe_report(report: Mapping[str, Any]) -> Iterator[str]:
    """Return the lines of a report."""
    first, second = report["steps"]
    yield f"steps: {first} and {second}"
    if report["max_loss_difference"] is None:
        yield "loss: no step is known of both"
    elif report["first_different_step"] is None:
        yield "loss: the same in each step that both have"
    else:
        step, gap = report["first_different_step"], report["max_loss_difference"]
        yield f"loss: differs from step {step} on, by {gap:.3g} at most"
    yield f"files that differ: {', '.join(report['different_files']) or 'none'}"
    for name, gap in report["max_tensor_differences"].items():
        yield f"  {name}: {'not comparable' if gap is None else f'values differ by {gap:.3g} at most'}"
    for row in report["not_the_same"]:
        yield f"not the same: {row['fact']}: {row['first']} and {row['second']}"
    if not report["not_the_same"]:
        yield "data, options, libraries and hardware are the same"


def _compare_tensors(server: Server, old: str, new: str, files: Sequence[str]) -> dict[str, float | None]:
    """Return the largest difference of values in each file of tensors; None where names or shapes differ."""
    compared = {}
    for name in files:
        if name.endswith(".safetensors"):
            with TemporaryDirectory() as folder:
                paths = [Path(folder) / side for side in ("old", "new")]
                for path, model in zip(paths, (old, new), strict=True):
                    server.fetch(f"/fine_tuning/models/{quote(model, safe='/:')}/files/{name}", path)
                compared[name] = compare_safetensors(*paths)
    return compared


def compare_safetensors(first: Path, second: Path) -> float | None:
    """Return the largest difference of the values in two files; None where names, shapes or dtypes differ."""
    headers = [_read_header(path) for path in (first, second)]
    tensors = [{name: (tensor["dtype"], tensor["shape"]) for name, tensor in header.items()} for header, _ in headers]
    if tensors[0] != tensors[1] or any(dtype not in _DTYPES for dtype, _ in tensors[0].values()):
        return None
    largest = 0.0
    for name in tensors[0]:
        sides = [_values(path, *header, name) for path, header in zip((first, second), headers, strict=True)]
        gap = abs(sides[0] - sides[1]).max(initial=0.0)
        largest = max(largest, float(gap))
    return largest


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the tensors of a file by name, and where their bytes begin. Raises CliError."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (OSError, ValueError, OverflowError, MemoryError) as error:
        raise CliError(f"{path.name}: no file of tensors") from error
    header.pop("__metadata__", None)
    return header, 8 + length


def _values(path: Path, header: Mapping[str, Any], start: int, name: str) -> "np.ndarray[Any, Any]":
    import numpy as np

    tensor = header[name]
    begin, end = tensor["data_offsets"]
    if begin == end:
        return np.zeros(0)
    dtype = np.dtype(_DTYPES[tensor["dtype"]])
    stored = np.memmap(path, dtype, "r", start + begin, shape=((end - begin) // dtype.itemsize,))
    if tensor["dtype"] == "BF16":
        return (stored.astype("<u4") << 16).view("<f4").astype("f8")
    return stored.astype("f8")
