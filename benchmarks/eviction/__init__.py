"""Eviction from millions of states, beside lookups and writers: `python -m benchmarks.eviction`."""
