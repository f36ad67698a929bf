"""How fast and how right a lookup is, up to a million prompts: `python -m benchmarks.lookup`."""
