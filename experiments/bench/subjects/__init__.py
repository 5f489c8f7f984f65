"""Agents and cores that the benchmarks measure."""
