"""The approximate cache: states of earlier jobs, found by similarity of prompts; knows no queue."""
