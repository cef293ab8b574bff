"""The study of learned controllers: what they bring, on which machines, and why."""
