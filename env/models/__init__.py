"""Models: where their weights come from, and which of them can work here."""
