"""`nightmill embed-eval`: embedding models side by side, on texts and judgements of one's own.

corpus ──▶ vectors, block by block ──┐
queries ─▶ vectors, timed one by one ┴─▶ the best k of each query ──▶ recall, nDCG, MRR ──▶ a table
judgements ──────────────────────────────────────────────────────────────┘
"""
