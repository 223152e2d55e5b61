"""Locomotion tasks on MuJoCo: physics in batches, bodies and rewards."""
