"""Self-check of an agent's memory, with a copy of the model."""
