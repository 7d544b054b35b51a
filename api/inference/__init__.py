"""Chat completions, responses, conversations, embeddings and rankings for interactive clients."""
