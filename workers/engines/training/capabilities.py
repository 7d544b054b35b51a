"""Training capabilities of this machine: `python -m workers.engines.training.capabilities PARENT` prints it as JSON.

A process of its own, because the worker that asks (PARENT is its pid) loads no torch.
"""

import json
import os
import sys
from typing import Final

from jobs.platform import processes

_NICE: Final = 19


def main(parent: int) -> None:
    processes.die_with(parent)
    os.nice(_NICE)
    import torch  # here and below: it takes most of the time

    from workers.engines.training import peft_choice, quantization

    fault = quantization.nf4_fault()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    json.dump(
        {"device": device, "free_bytes": peft_choice.free_bytes(), "qlora": not fault, "fault": fault}, sys.stdout
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
