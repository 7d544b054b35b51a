"""Prompts that are longer than their model takes: what is done about them where the client asks for it.

    request ──▶ fitted.Fitted ── fits, or nothing asked ──▶ engine
                    │ too long
                    ├──▶ cutting, facts, memory, summaries: a shorter prompt ──▶ engine ──▶ answer, which says so
                    └──▶ a model that takes more (route_long)

Unless it is asked for, nothing is changed: too long is `context_length_exceeded`, as with OpenAI.
"""
