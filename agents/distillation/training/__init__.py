"""The training loop of drafts."""
