"""Compressive Transformer memory: recent steps as they are, older ones compressed tier by tier.

The files, in the order in which to read them:

- `tiers`: the tiers of a layer's memory, and how far back they reach
- `schedule`: when each slot is formed, compressed and evicted, in closed form
- `core`: `CompressiveCore`, its state, and a window's way through all layers
- `window`: the data of a window: its plan, its slots, and the indices that gather them
- `layer_window`: one layer's way through a window
- `layer`: attention joined to the layer's input: plain, pre-norm, gated or post-norm
- `attention/`: attention of a window's steps to the layer's slots
- `compressors`: how a block of slots becomes one slot
- `reconstruction`: the losses that train the compressors
- `layer_step`: one step without a graph, on slots that lie in place
- `cache_schedule`: where slots go at such a step
- `kv_cache`: acting step by step, with cached keys and values
- `explain`: attention and reconstruction errors of a window, for inspection
"""
