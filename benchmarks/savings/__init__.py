"""What the cache saves on the shipped model, and at which quality."""
