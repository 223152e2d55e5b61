"""Names: the package's classes and functions as users call them, and where each of them stands.

The one table of public names. `maml_dist.NAME` gives what stands there; in a recipe the last part,
the class's own name, is its short name (`class_path: Adam` is the outer one under `outer`, the
inner one under `learner.inner`). So a file may move, and no recipe and no run knows of it.
"""

PUBLIC = {
    # What one calls.
    "meta_train": "maml_dist.training.trainer.meta_train",
    "meta_test": "maml_dist.inference.meta_test.meta_test",
    "load": "maml_dist.inference.load.load",
    "Run": "maml_dist.runs.run.Run",
    "MetaModule": "maml_dist.core.engine.meta_module.MetaModule",
    # Task distributions: to derive from, and those that there are.
    "TaskSource": "maml_dist.core.data.task_source.TaskSource",
    "TaskKey": "maml_dist.core.data.task_source.TaskKey",
    "Adapt": "maml_dist.core.data.task_source.Adapt",
    "Batch": "maml_dist.core.data.episode.Batch",
    "Episode": "maml_dist.core.data.episode.Episode",
    "supervised": "maml_dist.core.data.episode.supervised",
    "Sinusoid": "maml_dist.tasks.sinusoid.Sinusoid",
    "FewShot": "maml_dist.tasks.few_shot.FewShot",
    "Records": "maml_dist.tasks.records.Records",
    "Knapsack": "maml_dist.tasks.knapsack.Knapsack",
    "Ratings": "maml_dist.tasks.ratings.Ratings",
    # Examples by class, for FewShot.
    "ClassData": "maml_dist.tasks.few_shot.ClassData",
    "Arrays": "maml_dist.tasks.few_shot.Arrays",
    "ImageFolder": "maml_dist.tasks.images.image_folder.ImageFolder",
    "Omniglot": "maml_dist.tasks.images.omniglot.Omniglot",
    "MiniImagenet": "maml_dist.tasks.images.mini_imagenet.MiniImagenet",
    # Reinforcement learning.
    "Rollouts": "maml_dist.tasks.rollout.Rollouts",
    "Goal": "maml_dist.tasks.rollout.Goal",
    "Simulator": "maml_dist.core.data.simulator.Simulator",
    "StepResult": "maml_dist.core.data.simulator.StepResult",
    "EnvironmentFault": "maml_dist.core.data.simulator.EnvironmentFault",
    "Navigation": "maml_dist.tasks.navigation.Navigation",
    "Grid": "maml_dist.tasks.grid.Grid",
    "GymTasks": "maml_dist.tasks.gym.GymTasks",
    "HalfCheetah": "maml_dist.tasks.mujoco.half_cheetah.HalfCheetah",
    "Ant": "maml_dist.tasks.mujoco.ant.Ant",
    "PolicyGradient": "maml_dist.core.rl.policy_gradient.PolicyGradient",
    "Baseline": "maml_dist.core.rl.baseline.Baseline",
    "LinearBaseline": "maml_dist.core.rl.baseline.Linear",
    # Models.
    "MLP": "maml_dist.models.mlp.MLP",
    "EmbeddingMLP": "maml_dist.models.embedding_mlp.EmbeddingMLP",
    "Conv4": "maml_dist.models.conv4.Conv4",
    "GaussianPolicy": "maml_dist.models.gaussian_policy.GaussianPolicy",
    "CategoricalPolicy": "maml_dist.models.categorical_policy.CategoricalPolicy",
    # Learners, and the optimizers inside them.
    "Learner": "maml_dist.core.adaptation.learner.Learner",
    "StepContext": "maml_dist.core.adaptation.learner.StepContext",
    "Params": "maml_dist.core.params.Params",
    "MAML": "maml_dist.learners.maml.MAML",
    "Reptile": "maml_dist.learners.reptile.Reptile",
    "MetaSGD": "maml_dist.learners.meta_sgd.MetaSGD",
    "MAMLPlusPlus": "maml_dist.learners.maml_plus_plus.MAMLPlusPlus",
    "IMAML": "maml_dist.learners.imaml.IMAML",
    "ESMAML": "maml_dist.learners.evolution.ESMAML",
    "InnerOptimizer": "maml_dist.core.adaptation.inner_optimizers.InnerOptimizer",
    "InnerSGD": "maml_dist.core.adaptation.inner_optimizers.SGD",
    "InnerMomentum": "maml_dist.core.adaptation.inner_optimizers.Momentum",
    "InnerAdam": "maml_dist.core.adaptation.inner_optimizers.Adam",
    # Optimizers outside, and the schedules of their rates.
    "OuterOptimizer": "maml_dist.core.outer.optimizers.OuterOptimizer",
    "OuterSGD": "maml_dist.core.outer.optimizers.SGD",
    "OuterAdam": "maml_dist.core.outer.optimizers.Adam",
    "Adagrad": "maml_dist.core.outer.adagrad.Adagrad",
    "TrustRegion": "maml_dist.core.outer.trust_region.TrustRegion",
    "Schedule": "maml_dist.core.outer.schedules.Schedule",
    "ConstantSchedule": "maml_dist.core.outer.schedules.Constant",
    "LinearSchedule": "maml_dist.core.outer.schedules.Linear",
    "CosineSchedule": "maml_dist.core.outer.schedules.Cosine",
    # How tasks are differentiated.
    "Engine": "maml_dist.core.engine.engine.Engine",
}

# Of this package what recipes are made of; not what opens files, as `Metrics` does.
_ROOMS = ("config.experiment", "core", "learners", "models", "tasks")
ROOMS = tuple(f"maml_dist.{room}." for room in _ROOMS)
