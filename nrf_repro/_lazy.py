"""Public names of a package that are imported when they are first used, and old names that still work for one release."""
import sys
import warnings
from importlib import import_module
from types import ModuleType


def _warn(old, new): warnings.warn(f'{old} is now {new}.', DeprecationWarning, stacklevel=3)


def _load(target): # 'module:name' below nrf_repro, or 'module'
    module, _, name = target.partition(':')
    found = import_module(f'nrf_repro.{module}')
    return getattr(found, name) if name else found


def lazy(package, modules, old=None):
    """For a package's `__init__`: (`__getattr__`, `__dir__`, `__all__`), from module -> names that it defines.

    Importing the package then imports none of its modules. `old`: old name -> 'module:name' below nrf_repro; using it is a
    DeprecationWarning. Raises AttributeError for another name, as modules do.
    """
    where = {name: module for module, names in modules.items() for name in names.split()}

    def __getattr__(name):
        if name in where: return getattr(import_module(f'nrf_repro.{where[name]}'), name)
        if name not in (old or {}): raise AttributeError(f'module {package!r} has no attribute {name!r}')
        _warn(f'{package}.{name}', f'nrf_repro.{old[name].replace(":", ".")}')
        return _load(old[name])

    __getattr__.where = where   # read by docs/stubs.py

    def __dir__(): return sorted(where)

    return __getattr__, __dir__, sorted(where)


def renamed(package, names):
    """For a package's `__init__`: a `__getattr__` that gives old public names, name -> object, with a DeprecationWarning.

    They work for one release. Raises AttributeError for another name, as modules do.
    """
    def __getattr__(name):
        if name not in names: raise AttributeError(f'module {package!r} has no attribute {name!r}')
        _warn(f'{package}.{name}', names[name].__name__)
        return names[name]

    return __getattr__


def old_module(path, names):
    "Make a module of an earlier release importable: its names -> 'module:name' below nrf_repro. Using one is a DeprecationWarning."
    module = ModuleType(path, 'A module of an earlier release.')
    module.__getattr__ = lazy(path, {}, names)[0]
    sys.modules[path] = module
