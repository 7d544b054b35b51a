"""Begin the rounds of online evaluations that are due, and count those whose run has ended."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from jobs.db.engine import Database
from jobs.evals import runs
from jobs.fleet.models_file import Registry
from jobs.monitoring import online_evaluations
from jobs.monitoring.online_evaluations import Draw
from jobs.platform.storage import Storage, remove_objects
from jobs.settings import Settings

log = logging.getLogger(__name__)
T = TypeVar("T")


class OnlineEvaluations:
    """Do for online evaluations what is due. A process that is killed leaves at most items of a run that is not."""

    def __init__(
        self, config: Settings, db: Database, storage: Storage, registry: Callable[[], Registry | None]
    ) -> None:
        self._config, self._db, self._storage, self._registry = config, db, storage, registry

    def run(self) -> None:
        """Count what has ended, then begin what is due. Raises DatabaseBusy."""
        with self._db.read() as session:
            ended, due = online_evaluations.rounds_to_count(session), online_evaluations.due(session)
        for round_id in ended:
            event = self._write(partial(online_evaluations.end_round, round_id=round_id))
            log.info("online_evaluation_counted", extra={"run": round_id, "event": event})
        registry = self._registry() if due else None
        for evaluation_id in due if registry else ():  # else they wait for the models
            self._begin(evaluation_id, registry)

    def _begin(self, evaluation_id: str, registry: Any) -> None:
        drawn = None
        try:
            with self._db.read() as session:
                drawn = online_evaluations.draw(session, evaluation_id)
            if drawn is not None:
                self._start(drawn, registry)
        except online_evaluations.Refused as refusal:  # nothing of the run is left
            self._remove_items(drawn)
            self._write(partial(online_evaluations.miss, evaluation_id=evaluation_id, reason=refusal.message))
            log.info("online_evaluation_missed", extra={"evaluation": evaluation_id, "reason": refusal.message})

    def _start(self, drawn: Draw, registry: Registry) -> None:
        if drawn.lines:
            self._storage.put(runs.items_path(drawn.run_id), drawn.lines)
        start = partial(online_evaluations.start_round, config=self._config, registry=registry, drawn=drawn)
        made, folders = self._write(start)
        remove_objects(self._storage, folders)
        if made is None:
            self._remove_items(drawn)
        log.info("online_evaluation_drawn", extra={"evaluation": drawn.evaluation_id, "answers": drawn.answers})

    def _remove_items(self, drawn: Draw | None) -> None:
        if drawn is not None and drawn.lines:
            remove_objects(self._storage, [f"jobs/{drawn.run_id}"])

    def _write(self, work: Callable[[Session], T]) -> T:
        with self._db.write() as session:
            result = work(session)
        self._db.breathe()
        return result
