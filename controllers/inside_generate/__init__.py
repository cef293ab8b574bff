"""The requests of transformers' `generate`: checked, completed, and cut into single texts."""
