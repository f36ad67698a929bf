"""The demo: a prompt list through a whole fleet, with and without the cache."""
