"""Commands for a trained agent: evaluate, explain, export."""
