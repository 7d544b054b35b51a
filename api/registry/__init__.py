"""Names and versions of models that belong to projects, and feedback on what models answered."""
