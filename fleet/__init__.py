"""One machine's fleet: the embedded services, their supervisor, and the `nirvana` command."""
