"""Model files: safetensors and JSON in a zip archive, read without running code from the file."""
