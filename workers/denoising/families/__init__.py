"""One module per model family, each with the same few functions."""
