"""Ingest documents into vector stores: in two stages on two pools, by shards of a few files each.

    plan ─▶ cpu.ingest: parse, cut ──▶ the document, durable ──requeue──▶ gpu.embed: vectors, hidden ──▶ published
                  └── refused ─▶ failed                                        └── known texts are not embedded

A retry resumes: a document in storage is not parsed again, and a published file is not embedded again. Searches find
nothing of a file before its row names the key of the complete version.
"""
