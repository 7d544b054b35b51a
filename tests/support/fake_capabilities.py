"""What a machine can train, without looking: as `workers.engines.training.capabilities` prints it."""

import json
import sys

if __name__ == "__main__":
    json.dump({"device": "a fake", "free_bytes": 1, "qlora": True, "fault": None}, sys.stdout)
