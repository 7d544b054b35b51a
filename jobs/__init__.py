"""The ledger: what is true about a job. Imported by `api`, `workers` and `cli`; imports none of them.

Whoever imports any of the four has said first that no library is to send statistics home, nor to have a third party
convert a model of the hub: they ask the environment when they are imported. Children inherit it. Where a variable is
set already, the operator has said otherwise.
"""

import os

#: Switches against calls to the outside, in this order: of huggingface_hub (also for transformers and
#: sentence-transformers); of libraries that follow https://donottrack.sh; of vLLM; of transformers, which would have a
#: service of the hub convert weights without safetensors.
for _name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "VLLM_NO_USAGE_STATS", "DISABLE_SAFETENSORS_CONVERSION"):
    os.environ.setdefault(_name, "1")
