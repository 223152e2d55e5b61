"""The mathematics: parameters, episodes, learners, engine. Imports torch and numpy only."""
