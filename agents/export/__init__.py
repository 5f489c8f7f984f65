"""A trained policy as one graph, for hosts without this package: ONNX and `torch.export`."""
