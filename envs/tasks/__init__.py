"""Memory tasks, one a file, and the rooms, sprites and symbols that some of them share."""
