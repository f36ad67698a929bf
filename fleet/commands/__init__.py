"""The commands of `nirvana`: each module is imported when one of its commands is called."""
