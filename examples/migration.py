"""Bring over what a support team saved from OpenAI, run its eval on a model here, and ask its prompt by the old id.

    openai_export/ ─▶ nightmill migrate openai, dry ─▶ with --apply ─┬─▶ a new run of the old eval ─▶ compared with the
                                                                     │   run that was brought over
                                                                     └─▶ an answer of the old prompt ─▶ the report

OPENAI_BASE_URL and OPENAI_API_KEY name the server. The report is left in the current folder.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from openai import OpenAI, OpenAIError

EXPORT = Path(__file__).with_name("openai_export")
#: Ids that OpenAI gave.
EVAL, RUN, PROMPT = "eval_68b5c1d2e3f481918a7b", "evalrun_68b5e4f9d0b88191", "pmpt_68a1c2f0e4b88190b3d5"
QUESTION = "Do you ship to Norway?"
client = OpenAI()


def nightmill(*words: str) -> None:
    """Run a command against the server, and end with it if it fails."""
    command = [sys.executable, "-m", "cli", *words, "--url", str(client.base_url).removesuffix("/v1/")]
    environment = {**os.environ, "NIGHTMILL_API_KEY": client.api_key, "COLUMNS": "150"}
    subprocess.run(command, check=True, env=environment)  # noqa: S603 (ours)


def run_eval(model: str) -> str:
    """Run the eval that was brought over with the messages of its old run and a model here; return the run's id."""
    old: Any = client.evals.runs.retrieve(RUN, eval_id=EVAL).to_dict()
    rows = next(file.id for file in client.files.list(purpose="evals") if file.filename == f"{EVAL}.rows.jsonl")
    source = old["data_source"] | {"model": model, "source": {"type": "file_id", "id": rows}}
    run = client.evals.runs.create(EVAL, name=model, data_source=source)
    while run.status in ("queued", "in_progress"):
        time.sleep(0.5)
        run = client.evals.runs.retrieve(run.id, eval_id=EVAL)  # type: ignore[assignment]
    if run.status != "completed" or run.result_counts.errored:
        sys.exit(f"{run.id} {run.status}: {run.error.message}, {run.result_counts}")
    return run.id


def main() -> None:
    parser = argparse.ArgumentParser(description="bring over what was saved from OpenAI")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="the model that answers instead of OpenAI's")
    options = parser.parse_args()
    words = ("migrate", "openai", str(EXPORT), "--map", f"gpt-4o-mini={options.model}")
    print("a dry run: nothing is changed")
    nightmill(*words)
    print("the same, applied")
    nightmill(*words, "--apply", "--report", ".")
    run = run_eval(options.model)
    print(f"{EVAL} ran on {options.model}; compared with the run of OpenAI's model:")
    nightmill("evals", "compare", client.evals.runs.retrieve(RUN, eval_id=EVAL).id, run)
    prompt: Any = {"id": PROMPT, "variables": {"shop": "Fell & Fjord", "question": QUESTION}}
    answer = client.responses.create(prompt=prompt)
    print(f"{PROMPT}, asked '{QUESTION}', answers by {answer.model}:\n  {answer.output_text.strip()}")
    newest = max(Path().glob("migration-*.md"))
    print(f"the report, {newest.absolute()}:\n\n{newest.read_text(encoding='utf-8')}")


if __name__ == "__main__":
    try:
        main()
    except (OpenAIError, subprocess.CalledProcessError) as error:
        sys.exit(str(error))
