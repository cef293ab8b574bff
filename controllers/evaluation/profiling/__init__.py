"""Where the time and memory of a round go."""
