"""The workers and the models that they serve: the models file, routing, quarantine, measured runtimes."""
