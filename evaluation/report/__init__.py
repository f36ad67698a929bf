"""What the cache of a running fleet did save: read from its jobs."""
