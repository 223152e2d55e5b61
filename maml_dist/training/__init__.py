"""Meta-training: a run is prepared, checked, rehearsed, looped over and recorded."""
