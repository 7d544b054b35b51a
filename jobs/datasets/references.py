"""References: `dataset:NAME@VERSION/SPLIT` in place of the id of a file, in fine-tuning, evals, batches and datasets.

    dataset:refunds/train ──pin──▶ file-abc…                  what the job reads
                                   dataset:refunds@3/train    what its object shows: the newest complete version is 3

A reference is resolved in the request that names it. Versions that are made later change nothing.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.datasets import dataset_versions
from jobs.datasets.dataset_versions import SPLIT
from jobs.datasets.tables import DatasetFile, DatasetVersion, NamedDataset
from jobs.errors import InvalidRequest, NotFound
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job

SCHEME: Final = "dataset:"
#: The longest reference. Fields that take one in place of the id of a file are as long.
MAX_LENGTH: Final = 192
NAME_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
_REFERENCE: Final = re.compile(rf"{SCHEME}({NAME_PATTERN})(?:@([0-9]{{1,9}}))?(?:/([A-Za-z0-9_-]{{1,32}}))?")


def reference_of(name: str, number: int, split: str | None = None) -> str:
    """Return the reference to a split of a version, or to the only one that it has."""
    return f"{SCHEME}{name}@{number}{f'/{split}' if split else ''}"


def pin(session: Session, project_id: str, given: Mapping[str, str | None]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the files that fields name by a reference, and those references with their versions, both by field.

    Fields without a reference are left out. Raises: InvalidRequest.
    """
    ids, pins = dict[str, str](), dict[str, str]()
    for field, text in given.items():
        if text is not None and text.startswith(SCHEME):
            try:
                ids[field], pins[field] = _resolve(session, project_id, text)
            except NotFound as error:
                message = f"Invalid '{field}': {error.message}"
                raise InvalidRequest(message, param=field, code=error.code or "dataset_not_found") from None
    return ids, pins


def references_to(session: Session, file_ids: Sequence[str]) -> dict[str, str]:
    """Return the references to those of these files that are splits of datasets, by the file's id."""
    statement = (
        select(DatasetFile.file_id, NamedDataset.name, DatasetVersion.number, DatasetFile.name)
        .join(DatasetVersion, DatasetVersion.id == DatasetFile.version_id)
        .join(NamedDataset, NamedDataset.id == DatasetVersion.dataset_id)
        .where(DatasetFile.file_id.in_(file_ids), DatasetFile.role == SPLIT)
    )
    rows = session.execute(statement)
    return {file_id: reference_of(name, number, split) for file_id, name, number, split in rows}


def _resolve(session: Session, project_id: str, text: str) -> tuple[str, str]:
    """Return the file that a reference names, and the reference with its version. Raises: NotFound."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise NotFound("A reference is 'dataset:NAME@VERSION/SPLIT'.", code="invalid_dataset_reference")
    name, number, split = match.groups()
    dataset = dataset_versions.find(session, project_id, name)
    if number is None:
        newest = dataset_versions.newest_complete(session, [dataset.id]).get(dataset.id)
        if newest is None:
            raise NotFound(f"Dataset '{name}' has no complete version.", code="dataset_version_not_found")
        number = str(newest)
    version = dataset_versions.find_version(session, dataset, number)
    if not _is_complete(session, version):
        message = f"Version {version.number} of dataset '{name}' is not complete."
        raise NotFound(message, code="dataset_version_not_complete")
    files = dataset_versions.splits_of(session, [version.id])[version.id]
    chosen = [file for file in files if split in (None, file.name)]
    if len(chosen) != 1:
        names = ", ".join(f"'{file.name}'" for file in files)
        raise NotFound(f"Dataset '{name}' has the splits {names}: name one.", code="dataset_split_not_found")
    return chosen[0].file_id, reference_of(dataset.name, version.number, chosen[0].name)


def _is_complete(session: Session, version: DatasetVersion) -> bool:
    return session.scalar(select(Job.state).where(Job.id == version.id)) == JobState.SUCCEEDED
