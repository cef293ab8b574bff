"""Rule-based controllers."""
