"""A fuzz of exactness: random models, drafts, trees and requests against plain decoding. `make fuzz` runs it."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
