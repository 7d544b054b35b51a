"""Run a DSPy program on a model: `python dspy_program.py MODEL`. OPENAI_BASE_URL and OPENAI_API_KEY name the server."""

import os
import sys

import dspy


def main() -> None:
    model = dspy.LM(f"openai/{sys.argv[1]}", api_base=os.environ["OPENAI_BASE_URL"], cache=False)
    dspy.configure(lm=model)
    answer = dspy.Predict("question -> colour")
    for question in ("Which colour is the sky?", "Which colour is grass?"):
        print(answer(question=question).colour)


if __name__ == "__main__":
    main()
