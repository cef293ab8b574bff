"""The world that a controller acts in: trees, models, drafts, decoding, environments, replay and latency."""
