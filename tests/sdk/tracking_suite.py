"""Read what trackers have written, with their own libraries: `python tracking_suite.py WANDB_FILE EVENT_FILE`.

Prints one JSON object: the run's head and steps, and the scalars by tag.
"""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

_HEADER = 7  # of the file, and of each part of a record
_BLOCK = 32_768


def records(data: bytes) -> Iterator[bytes]:
    """Return the records of a file in the format of LevelDB's log."""
    at, record = _HEADER, b""
    while at < len(data):
        if _BLOCK - at % _BLOCK < _HEADER:
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + _HEADER])
        record += data[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def main(wandb_file: str, event_file: str) -> None:
    head, steps, exit_code = {}, [], None
    for data in records(Path(wandb_file).read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.HasField("run"):
            run = record.run
            config = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in run.config.update}
            head = {"id": run.run_id, "project": run.project, "name": run.display_name, "tags": [*run.tags]}
            head["config"] = config
        if record.HasField("history"):
            items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            steps.append({"step": record.history.step.num, **{key: json.loads(text) for key, text in items.items()}})
        if record.HasField("exit"):
            exit_code = record.exit.exit_code
    accumulator = EventAccumulator(event_file, size_guidance={"scalars": 0})
    accumulator.Reload()
    scalars = {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }
    print(json.dumps({"run": head, "steps": steps, "exit_code": exit_code, "scalars": scalars}))


if __name__ == "__main__":
    main(*sys.argv[1:])
