"""Meta-learning algorithms, one a file. Each is a `maml_dist.core.adaptation.learner.Learner`."""
