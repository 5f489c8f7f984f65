"""The `ctrl` command line: training, comparisons, evaluation and benchmarks of agents with memory."""
