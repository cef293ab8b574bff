"""The Gymnasium environments, their action spaces, features and pictures."""
