"""The checks of `nightmill doctor`, in their order. Each takes a `Patient` and yields findings."""

from collections.abc import Callable, Iterable

from cli.doctor import deep, installed, reachable, stored
from cli.doctor.findings import Finding, Patient

CHECKS: tuple[Callable[[Patient], Iterable[Finding]], ...] = (
    installed.interpreter,
    installed.packages,
    installed.engines,
    installed.console,
    installed.parsers,
    installed.graders,
    installed.models,
    installed.embeddings,
    stored.data_folder,
    stored.source_folders,
    stored.disk,
    stored.database,
    stored.quarantines,
    stored.tuned_models,
    stored.files,
    reachable.broker,
    reachable.streams,
    reachable.api,
    reachable.ports,
    reachable.processes,
    reachable.queues,
    reachable.engine_endpoints,
    reachable.text_images,
)
#: What takes minutes where much is stored, for `--deep`.
DEEP_CHECKS = (deep.database_content, deep.stored_objects)

__all__ = ["CHECKS", "DEEP_CHECKS", "Patient"]
