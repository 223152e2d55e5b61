import importlib
import pkgutil

import maml_dist


def test_no_module_hides_a_public_function():
    names = {module.name for module in pkgutil.iter_modules(maml_dist.__path__)}
    assert not names & set(maml_dist.__all__)
    for name in names:
        importlib.import_module(f"maml_dist.{name}")
    assert callable(maml_dist.load) and callable(maml_dist.meta_train)
