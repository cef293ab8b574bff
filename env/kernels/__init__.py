"""Tools that every model uses: compiled functions to choose tokens and move cache rows, and memory of the system."""
