"""Compiled functions that any model needs: choosing tokens and moving cache rows."""
