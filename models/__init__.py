"""The small text-to-image model that ships with the project, its training and evaluation."""
