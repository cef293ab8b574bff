"""The peers' libraries, a module each, run by workers; and, for our side, the writer of GGUF files."""
