"""The training stages, one module each; `models.train` runs them in order."""
