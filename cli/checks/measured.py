"""What was measured and chosen: the runtime of each embedding model."""

from collections.abc import Iterator

from cli.checks.patient import Patient
from cli.finding import Finding, fine
from jobs.fleet import runtimes
from jobs.fleet.models_file import EngineKind, Model, ModelsFileError, Registry
from jobs.fleet.runtimes import Candidate, Record


def embeddings(patient: Patient) -> Iterator[Finding]:
    """One finding for each model and machine; machines that share the data folder show each other's."""
    try:
        registry = Registry.load(patient.config)
    except ModelsFileError:
        return  # the models' own check says so
    records = runtimes.every(runtimes.folder_of(patient.config))
    for model in registry.models.values():
        if model.engine is EngineKind.EMBED:
            yield from _chosen(
                model, [one for one in records if one.model == model.name], patient.config.embedding_floor
            )


def _chosen(model: Model, records: list[Record], floor: float) -> Iterator[Finding]:
    what = f"embeddings of {model.name}"
    args = model.engine_args
    if args.get("runtime", "auto") == "torch" or args.get("dtype", "auto") != "auto":
        yield fine(what, f"torch {args.get('dtype', 'auto')}, as its engine_args say")
    elif floor >= 1 and args.get("runtime", "auto") == "auto":
        yield fine(what, "torch, as NIGHTMILL_EMBEDDING_FLOOR=1 allows nothing else")
    elif not records:
        yield fine(what, "torch; what is fastest is measured when its worker has run for a minute on a quiet machine")
    for record in records:
        yield fine(what, f"{record.choice.name} on {record.machine}; {'; '.join(_figures(record))}")


def _figures(record: Record) -> Iterator[str]:
    for one in record.candidates:
        reason = f", refused: {one.refused}" if one.refused else ""
        yield f"{one.name} {_measured(one)}{reason}"


def _measured(one: Candidate) -> str:
    if not one.texts_per_second:
        return "not run"
    return f"{one.texts_per_second:g} texts/s (cosine {one.mean_cosine:.5f}, least {one.least_cosine:.5f})"
