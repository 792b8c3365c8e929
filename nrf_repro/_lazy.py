"""Public names of a package that are imported when they are first used, and old names that still work."""
import warnings
from importlib import import_module


def lazy(package, modules):
    """For a package's `__init__`: (`__getattr__`, `__dir__`, `__all__`), from module -> names that it defines.

    Importing the package then imports none of its modules. A name that is a module itself gives the module.
    Raises AttributeError for another name, as modules do.
    """
    where = {name: module for module, names in modules.items() for name in names.split()}

    def __getattr__(name):
        if name not in where: raise AttributeError(f'module {package!r} has no attribute {name!r}')
        module = import_module(f'nrf_repro.{where[name]}')
        return module if where[name] == name else getattr(module, name)

    def __dir__(): return sorted(where)

    return __getattr__, __dir__, sorted(where)


def renamed(package, names):
    """For a package's `__init__`: a `__getattr__` that gives old public names, name -> object, with a DeprecationWarning.

    They work for one release. Raises AttributeError for another name, as modules do.
    """
    def __getattr__(name):
        if name not in names: raise AttributeError(f'module {package!r} has no attribute {name!r}')
        warnings.warn(f'{package}.{name} is now {names[name].__name__}.', DeprecationWarning, stacklevel=2)
        return names[name]

    return __getattr__
