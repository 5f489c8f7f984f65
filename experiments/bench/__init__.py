"""Benchmarks, one a file, and the turns and columns that they share."""
