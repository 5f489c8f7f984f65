"""Actor processes of IMPALA: the pool that the learner talks to, the process, and what they share."""
