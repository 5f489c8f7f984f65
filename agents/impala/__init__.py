"""IMPALA: the algorithm, its learner, and V-trace."""
