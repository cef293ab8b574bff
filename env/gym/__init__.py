"""The Gymnasium environments: actions, observations and rendering."""
