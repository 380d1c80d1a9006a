"""Encodings and repairs as masks over states, in Transformers: `python -m benchmarks laboratory`."""
