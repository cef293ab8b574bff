"""Training a draft from text that its target writes."""
