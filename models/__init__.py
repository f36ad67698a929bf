"""The small text-to-image model that ships with the project: data, training, weights, evaluation."""
