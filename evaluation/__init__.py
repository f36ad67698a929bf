"""What a prompt log says about approximate caching: its structure, and replays of the cache."""
