"""Checks of envs: the contract, its laws, and transcripts that it judges."""
