"""Responses with the tool `file_search`: search vector stores, and put the results before the model.

    request ──▶ the user's last message ──▶ search, by a worker with the store's embedding model
            ──▶ numbered and quoted excerpts before the message ──▶ engine ──▶ answer, with citations

Every such request searches; the model, which may be a small one, does not decide. Text of files is data: the
instructions get a sentence that says so, and nothing of the files (see `quoting`). Engines do not know the tool; the
middleware works alike for interactive clients, lines of batches and background responses. The client sees the tools and
instructions that it sent, a `file_search_call` before the message, and citations in the message. With `refuse` it sees
a refusal if the files do not support the answer.
"""
