"""vLLM in the worker's own process: the engine, the seam to its modules, the processes that it may leave behind."""
