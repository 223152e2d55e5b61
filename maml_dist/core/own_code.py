"""Own code: which modules are the user's own, by the names under which they are imported."""

PACKAGE = "maml_dist.config.user_code"  # which stands for the folders of one's own modules


def is_own(module: str) -> bool:
    """Whether a module is one's own: of a folder that is trusted, or the script that runs.

    Both by their names alone: under such a name nothing is imported that is not trusted.
    """
    return module == "__main__" or module.startswith(f"{PACKAGE}.")
