"""Tuned models and who may ask for them, aliases of models, and feedback on what models answered."""
