"""Task of the Compressive Transformer paper as a grid world: its rules, its two rooms, its sprites and its agents."""
