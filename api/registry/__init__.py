"""Names of models that belong to projects."""
