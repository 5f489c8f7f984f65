"""State of a training run beside its weights, so that a loaded model goes on as if it never stopped."""
