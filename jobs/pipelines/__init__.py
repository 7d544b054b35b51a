"""Pipelines: steps that are jobs of other rooms, made one after another."""
