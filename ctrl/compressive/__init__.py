"""Compressive Transformer memory: the core, its schedule of slots, its attention and its compressors."""
