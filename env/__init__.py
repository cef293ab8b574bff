"""The world a controller acts in: models, trees, rounds."""
