"""The schema's history. `python -m migrations.check` proves that it ends where the models are."""
