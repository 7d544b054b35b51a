"""The jobs that a list selects, and the index by which the database finds them.

A condition that nearly every job meets leads the database through all jobs of the project. A selection therefore shows
one index only, that of the first of these conditions:

    file_id, several states                  their ids, from an index each
    idempotency_key, schedule_id             few jobs each
    state, unless it is `succeeded`          few jobs are live or have failed
    model
    kind
    state = succeeded                        most jobs
    none of these                            the project's jobs in the order of time

The other conditions, those on metadata included, are checked on the rows that the index leads to.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import CompoundSelect, Select, select, union

from jobs.db.base import matching
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job

_FILES: Final = (Job.input_file_id, Job.output_file_id, Job.error_file_id)


def select_jobs(
    project_id: str,
    *,
    file_id: str | None = None,
    states: Sequence[JobState] = (),
    **values: str | None,
) -> Select[Job]:
    """Return the statement of a project's jobs that name the file, are in one of the states, and have the values.

    `values` are of the columns `idempotency_key`, `schedule_id`, `model` and `kind`. None, or no state, selects all.
    """
    equal = {name: value for name, value in values.items() if value is not None} | {"project_id": project_id}
    ids: list[CompoundSelect[str]] = []
    if file_id is not None:
        ids.append(union(*(select(Job.id).where(column == file_id) for column in _FILES)))
    if len(states) == 1:
        equal["state"] = states[0]
    elif states:
        of_project = select(Job.id).where(Job.project_id == project_id)
        ids.append(union(*(of_project.where(Job.state == state) for state in states)))
    indexed = () if ids else ("project_id", _index_column(equal))
    return select(Job).where(*matching(Job, equal, indexed=indexed), *(Job.id.in_(query) for query in ids))


def _index_column(equal: Mapping[str, str]) -> str:
    """Return the column beside the project's whose index finds the fewest jobs, as far as the module's list tells."""
    state = "" if equal.get("state") == JobState.SUCCEEDED else "state"
    order = ("idempotency_key", "schedule_id", state, "model", "kind", "state")
    return next((name for name in order if name in equal), "project_id")
