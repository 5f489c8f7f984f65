"""Attention of a window's steps to the slots of a layer: who sees what, how scores come about, forward and backward."""
