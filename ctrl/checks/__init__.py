"""Self-checks of memory cores: the five laws, for any core."""
