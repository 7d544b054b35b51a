"""Documents into vector stores, in two stages on two pools, shard by shard of some files each.

    plan ─▶ cpu.ingest: parse, cut ──▶ the document, durable ──pass_on──▶ gpu.embed: vectors, hidden ──▶ published
                  └── refused ─▶ failed                                        └── texts known already are not embedded

A retry goes on where the attempt before it was: a document that lies in storage is not parsed again, a file that was
published is not embedded again. Nothing can be found of a file before its row names the key of the whole version.
"""
