"""Fine-tuning jobs, their events and checkpoints, and permissions to ask for checkpoints."""
