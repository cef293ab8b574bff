"""The token tree of a round: its parameters, its growth and how tokens are chosen. Read this first."""
