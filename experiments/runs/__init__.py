"""Single runs: build a model, train it, record it, evaluate it; worker processes; the run folder."""
