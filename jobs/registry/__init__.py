"""Tuned models, their versions and who may ask for them, aliases of models, and feedback on what models answered."""
