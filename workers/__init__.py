"""Where Celery, torch and the cache meet: the life of a job, and the periodic tasks."""
