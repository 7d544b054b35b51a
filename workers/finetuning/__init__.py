"""Fine-tuning jobs in a worker: planned, trained by a child process, and finished.

    files ─▶ planning: examined in a child, snapshots, one shard
    claim ─▶ TrainingRun ─▶ TrainerProcess (a child, `workers.engines.training`)
                 │  ◀─ reports ─┘
                 ├─▶ steps, events: SQL, once a second        (`recorder`)
                 ├─▶ checkpoints: storage, then their row     (`checkpoints`)
                 └─▶ the job's finish: CSV, curve, the model  (`results`)

No torch is loaded here.
"""
