"""Ask a model in a LangChain chain: `python langchain_chain.py MODEL`.

OPENAI_BASE_URL and OPENAI_API_KEY name the server; LangChain reads both.
"""

import sys

from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI


def main() -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "Answer in one word."), ("user", "{question}")])
    chain = prompt | ChatOpenAI(model=sys.argv[1])
    for answer in chain.batch([{"question": "Which colour is the sky?"}, {"question": "Which colour is grass?"}]):
        print(answer.content)


if __name__ == "__main__":
    main()
