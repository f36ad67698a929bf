"""The three servers a fleet needs, started from their wheels: PostgreSQL, Valkey, SeaweedFS."""
