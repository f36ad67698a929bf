"""Errors of the model's training and evaluation.

ModelsError
|-- ArtError
`-- StageError
"""

from __future__ import annotations


class ModelsError(Exception):
    """Something about the shipped model, its training or its evaluation went wrong."""


class ArtError(ModelsError):
    """A tarball of drawings is missing, damaged or lacks a subject."""


class StageError(ModelsError):
    """A training stage was asked for before the one that it builds on."""
