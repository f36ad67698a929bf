"""At which similarity a model's reused states keep its quality: measured, not assumed."""
