"""Fine-tuning jobs in a worker: planned by examining their files in a child process."""
