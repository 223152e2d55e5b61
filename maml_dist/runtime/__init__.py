"""The actors, and where they run: in this process, or on Ray."""
