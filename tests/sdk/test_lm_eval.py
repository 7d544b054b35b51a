"""lm-evaluation-harness against the server (`local-chat-completions`), in an environment of its own."""

from pathlib import Path

import pytest

from tests.sdk.deployment import Deployment
from tests.support import lm_eval
from tests.support.eval_oracle import answer_to

#: It imports large libraries, and may install them before.
pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

_TASK = """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 32}
metric_list: [{metric: exact_match}]
"""


def test_a_task_is_evaluated_over_chat_completions(tmp_path: Path, deployment: Deployment) -> None:
    questions = [f"What is {n} and {n}?" for n in range(20)]
    rows = [{"question": text, "answer": answer_to(text) if n < 15 else "no"} for n, text in enumerate(questions)]
    facts = deployment.facts("lm-eval")
    url = f"{facts['url']}/v1/chat/completions"
    arguments = {"model": facts["model"], "base_url": url, "num_concurrent": 4, "max_retries": 2}

    evaluated = lm_eval.evaluate(
        tmp_path, _TASK, rows, "local-chat-completions", arguments, facts["key"], "--apply_chat_template"
    )

    assert evaluated.metrics["exact_match"] == 0.75
    assert evaluated.items == 20
    assert deployment.inline.errors == []
