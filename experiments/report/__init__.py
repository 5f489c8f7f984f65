"""Reports of runs: summaries, plots, TensorBoard, and the provenance of results."""
