"""Learning: distilling drafts, and later controllers that learn."""
