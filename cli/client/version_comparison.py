"""Two versions side by side: their data, options, libraries, metrics and evaluations, as rows of a table."""

from collections.abc import Iterator, Mapping
from typing import Any

Version = Mapping[str, Any]


def compare_versions(first: Version, second: Version) -> list[dict[str, Any]]:
    """Return a row for each fact that one of two versions has, with its values and whether they differ."""
    sides = dict(_facts(first)), dict(_facts(second))
    return [
        {
            "fact": name,
            "first": sides[0].get(name),
            "second": sides[1].get(name),
            "differs": sides[0].get(name) != sides[1].get(name),
        }
        for name in dict.fromkeys((*sides[0], *sides[1]))
    ]


def _facts(version: Version) -> Iterator[tuple[str, Any]]:
    manifest = version["manifest"]
    for name in ("stage", "semantic_version", "license", "git_commit", "dvc_hash", "base", "parent", "method", "bytes"):
        yield name, version[name]
    yield "seed", manifest["seed"]
    for data in manifest["data"]:
        yield f"data.{data['role']}", data["sha256"]
    groups = {name: manifest[name] for name in ("hyperparameters", "training")}
    run = manifest["run"]
    groups |= {name: run.get(name) or {} for name in ("versions", "hardware", "base")}
    groups["run"] = {name: run.get(name) for name in ("step", "dtype", "threads")}
    groups["metrics"] = version["metrics"]
    for group, values in groups.items():
        for name, value in values.items():
            yield f"{group}.{name}", value
    for run in reversed(manifest["evaluations"]):  # the newest one of an eval and a criterion is the last one here
        for criterion in run["per_testing_criteria_results"] or ():
            yield f"{run['eval_id']}.{criterion.get('testing_criteria')}", _share(criterion)


def _share(criterion: Mapping[str, Any]) -> float | None:
    """Return the share of items that passed a criterion, in percent."""
    passed, failed = (criterion.get(name) or 0 for name in ("passed", "failed"))
    return round(100 * passed / (passed + failed), 1) if passed + failed else None
