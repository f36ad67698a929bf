"""Where Celery, torch and the cache meet: the life of a job on a GPU worker, and the periodic tasks."""
