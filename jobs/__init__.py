"""The ledger: what is true about a job. Imported by `api`, `workers` and `cli`; imports none of them."""
