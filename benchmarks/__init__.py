"""What the code takes, in time and memory, beside transformers.models.rag and beside the machine's own limits."""
