"""Trained models: loaded, adapted to new tasks, and scored on held-out ones."""
