"""Comparisons: several cores on one task, the demo, and the ablation of compressors."""
