"""The study of learned controllers: what they gain, on which machines, and why."""
