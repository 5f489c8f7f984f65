"""Attention of a window's steps to the slots of a layer: masks, positions, scores, and a fast backward pass.

The files, in the order in which to read them:

- `block_mask`: a window cut into blocks of steps, the columns that each block sees, and relative-position buckets
- `memory_attention`: projections, norms and heads; `AgeAttention`, with a learned bias on a slot's age
- `block_attention`: the attention of blocks to their columns, forward and backward
- `relative`: `RelativeAttention`, with Transformer-XL's sinusoidal positions
- `clock`: the step of the episode as features, and attention by time
- `novelty`: how unusual a slot is among its layer's inputs
"""
