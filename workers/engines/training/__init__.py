"""Fine-tuning: a child process that trains one model and reports each step.

    worker ──spec.json──▶ child: rows ─▶ labels ─▶ dtype by measuring ─▶ trl's trainer ─▶ checkpoints
       ▲  └──orders (checkpoint_and_stop)──▶ │                                  │
       └──────reports, JSON lines on a pipe──┴── started, step, evaluation, checkpoint, finished, failed

`protocol` and `checkpoint_folder` load no heavy library: the worker that drives the child imports them. trl, peft and
torch are loaded in the child alone. The child knows nothing of the ledger, the storage or projects.
"""
