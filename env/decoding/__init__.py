"""Live decoding: rounds on real models. Read this after `specgym.env.tree`."""
