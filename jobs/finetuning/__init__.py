"""Fine-tuning jobs: the request, the rows of their progress, their data and their names."""
