"""The inner loop: learners, inner optimizers."""
