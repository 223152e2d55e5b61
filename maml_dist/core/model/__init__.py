"""The user's model as a pure function of its parameters."""
