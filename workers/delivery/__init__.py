"""Webhooks: the outbox, the signed request, the retry table. No torch, no Celery."""
