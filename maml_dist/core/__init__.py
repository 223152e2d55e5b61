"""The mathematics: parameters, episodes, learners, sources, engine, outer updates. Imports torch and numpy only."""
