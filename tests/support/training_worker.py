"""A worker of fine-tuning in a process of its own, to be killed: `… DATA_DIR DATABASE_URL JOB MODULE`."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from jobs.finetuning import jobs
from jobs.queues import Queue
from jobs.settings import Settings
from jobs.timings import Timings
from workers import lifecycle
from workers.finetuning.training_run import TrainingRun
from workers.kinds import HANDLERS
from workers.runtime.context import Context, Pool, build

#: Small, so that a worker that is gone is noticed soon.
SCALED = {"lease_seconds": 1.5, "min_free_bytes": 0}


def context_of(config: Settings) -> Context:
    pool = Pool("finetune", (Queue.FINETUNE,), 1, models=("*",))
    return build(config, pool, replace(Timings(), capability_check=0.0))


def use(module: str) -> None:
    """Have this process train with another module than the trainer's own."""
    HANDLERS[jobs.NAME] = replace(HANDLERS[jobs.NAME], runs={Queue.FINETUNE: partial(TrainingRun, module=module)})


if __name__ == "__main__":
    data_dir, url, job_id, module = sys.argv[1:]
    use(module)
    models = Path(data_dir) / "models.yaml"
    config = Settings(data_dir=Path(data_dir), database_url=url, models_file=str(models), **SCALED)
    lifecycle.run_shard(context_of(config), Queue.FINETUNE, (), job_id, 0)
