"""Write one run of Weights & Biases: `python wandb_child.py`, with nothing but its library.

Standard input is JSON lines: first what to call `wandb.init` with, its settings and the exit code of a run that has
ended, then a line for each step. The process ends with 0 once the library has written, or sent, all of them. A run that
has a step already takes it no second time: steps only grow.
"""

import ctypes
import json
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    head = json.loads(sys.stdin.readline())
    import wandb

    run = wandb.init(**head["init"], settings=wandb.Settings(**head["settings"]))
    for line in sys.stdin:
        row = json.loads(line)
        run.log(row["metrics"], step=row["step"])
    run.finish(exit_code=head["exit_code"])


if __name__ == "__main__":
    main()
