"""Helpers of the agents: spaces, argument checks, NaN checks, normalisation of observations and values."""
