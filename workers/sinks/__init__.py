"""Sinks: systems of the operator that receive what happens here, MLflow's registry and a server of OpenLineage."""
