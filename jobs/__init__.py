"""The ledger: what is true about a job. Imported by `api`, `workers` and `cli`; imports none of them.

Whoever imports any of the four has said first that no library is to send statistics home: they ask the environment when
they are imported. Children inherit it. Where a variable is set already, the operator has said otherwise.
"""

import os

#: Of huggingface_hub (so transformers, sentence-transformers); of whoever heeds https://donottrack.sh; of vLLM.
for _name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "VLLM_NO_USAGE_STATS"):
    os.environ.setdefault(_name, "1")
