"""Live decoding: rounds on real models. Read `live.py` after `specgym.env.tree`."""
