"""Recipes, overrides and the experiment that they describe; whose code may be used."""
