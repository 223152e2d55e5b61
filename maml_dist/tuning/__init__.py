"""Search of a recipe's keys with Ray Tune."""
