"""Policy gradients: distributions, baselines, advantages, surrogates."""
