"""Run a batch in Airflow, with the operator of the provider for OpenAI: `python airflow_batch.py MODEL`.

The connection `openai_default` names the server. As a variable of Airflow's processes:

    AIRFLOW_CONN_OPENAI_DEFAULT='{"conn_type": "openai", "host": "http://127.0.0.1:8080/v1", "password": "nm_…"}'
"""

import json
import sys
import tempfile
from pathlib import Path

from airflow.providers.openai.hooks.openai import OpenAIHook
from airflow.providers.openai.operators.openai import OpenAITriggerBatchOperator
from airflow.sdk import dag, task

ENDPOINT = "/v1/chat/completions"


@task
def upload(model: str) -> str:
    """Upload the requests, and return the id of their file."""
    texts = ["Which colour is the sky?", "Which colour is grass?"]
    bodies = [{"model": model, "messages": [{"role": "user", "content": text}]} for text in texts]
    lines = [{"custom_id": f"{n}", "method": "POST", "url": ENDPOINT, "body": body} for n, body in enumerate(bodies)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "requests.jsonl")
        path.write_text("\n".join(map(json.dumps, lines)))
        return OpenAIHook().upload_file(str(path), purpose="batch").id


@task
def show(batch_id: str) -> None:
    """Print the answers of a batch."""
    hook = OpenAIHook()
    for line in hook.conn.files.content(hook.get_batch(batch_id).output_file_id).text.splitlines():
        print(json.loads(line)["response"]["body"]["choices"][0]["message"]["content"])


@dag(schedule=None)
def nightmill_batch(model: str = "smollm2-135m-instruct") -> None:
    """Upload requests, run them as a batch, and print the answers."""
    file_id = upload(model)
    batch = OpenAITriggerBatchOperator(task_id="batch", file_id=file_id, endpoint=ENDPOINT, wait_seconds=1)
    show(batch.output)


if __name__ == "__main__":
    nightmill_batch(sys.argv[1]).test()
else:
    nightmill_batch()
