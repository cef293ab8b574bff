"""Drawn by the fuzz: models and drafts, changes of models, arguments, controllers."""
