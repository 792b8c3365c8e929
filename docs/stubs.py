"""Stubs (`__init__.pyi`) of the packages whose names are imported lazily: a type checker cannot see what `nrf_repro._lazy` does."""
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEAD = '# Made by docs/stubs.py from the names in __init__.py: `make book` writes it anew.\n'


def stub_of(package): # -> text, or None where names are imported as usual
    module = import_module(package)
    if not (where := getattr(getattr(module, '__getattr__', None), 'where', None)): return None
    own = package.removeprefix('nrf_repro').removeprefix('.')
    lines = [f'from nrf_repro.{path} import {name} as {name}' for name, path in sorted(where.items(), key=lambda item: (item[1], item[0]))]
    more = ['from typing import Any', '__version__: str', 'TASKS: dict[str, dict[str, str]]', '_lazy: Any', '_renamed: Any'] if not own else []
    return HEAD + '\n'.join([*lines, *more]) + '\n'


def write_stubs(root=ROOT):
    sys.path.insert(0, str(root))
    for init in sorted(root.glob('nrf_repro/**/__init__.py')):
        if text := stub_of('.'.join(init.parent.relative_to(root).parts)): init.with_suffix('.pyi').write_text(text, encoding='utf-8')


if __name__ == '__main__': write_stubs()
