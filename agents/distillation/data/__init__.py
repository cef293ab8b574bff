"""Training data for drafts: texts, teacher states and batches."""
