"""Denoising of many jobs in one batch, step by step. No Celery, no SQL."""
