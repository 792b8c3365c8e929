"""Public names of a package that are imported when they are first used."""
from importlib import import_module


def lazy(package, modules):
    """For a package's `__init__`: (`__getattr__`, `__dir__`, `__all__`), from module -> names that it defines.

    Importing the package then imports none of its modules. Raises AttributeError for another name, as modules do.
    """
    where = {name: module for module, names in modules.items() for name in names.split()}

    def __getattr__(name):
        if name not in where: raise AttributeError(f'module {package!r} has no attribute {name!r}')
        return getattr(import_module(f'nrf_repro.{where[name]}'), name)

    def __dir__(): return sorted(where)

    return __getattr__, __dir__, sorted(where)
