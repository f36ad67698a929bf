"""Measurements of the fleet's parts: each prints its table, its caveats and one JSON line."""
