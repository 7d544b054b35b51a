"""The workers and what they serve: the models file, routing, quarantine, measured runtimes."""
