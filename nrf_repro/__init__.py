"""Does batch normalisation learn non-robust features? A reproduction, and tools that measure any PyTorch classifier."""
import sys
import warnings
from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

# The public names, by what one does with them: task -> package -> names. The site has a page that is made from this.
TASKS = {
    'Measure a classifier': {
        'measure': 'measure Measurement attacks_at',
        'attacks': 'robust_correct',
        'features': 'ligs',
        'training': 'correct'},
    'Attack a classifier': {
        'attacks': 'Attack PAPER_ATTACKS LOSSES PERTURBATION_SETS PerturbationSet input_gradient margin gradient_underflows '
                   'optimised_inference'},
    'Compute usefulness of features': {
        'features': 'usefulness robust_usefulness'},
    'Get images': {
        'data': 'Images load class_images balanced synthetic testbed reliance'},
    'Build, save and load networks': {
        'models': 'build_model ARCHS CONTROLS Standardize load_model save_model',
        'models.norms': 'normalize make_norm'},
    'Train networks': {
        'training': 'Recipe RECIPES Monitor fit'},
    'Use what is published': {
        'experiment': 'load_published published_networks leaderboard load_profile profiles',
        'results': 'read_published paper_rows'},
    'Decide claims from rows of results': {
        'results': 'read_rows write_rows Claim load_claims effects decide decide_published headline '
                   'Interval wilson t_interval two_way'},
    'Make tables, figures and reports': {
        'report': 'render_report compare render_compare table_1 table_2'},
    'Compute the theory of normalisation': {
        'theory': 'invariance_error fit_whitening whiten bound_terms landscape layer_gradients'}}


# --- public names that are imported when they are first used, and old names that still work for one release ---

def _by_package():
    "Package -> its public names in one string."
    found = {}
    for packages in TASKS.values():
        for package, names in packages.items():
            found[package] = f'{found.get(package, "")} {names}'
    return found


def _warn(old, new): warnings.warn(f'{old} is now {new}.', DeprecationWarning, stacklevel=3)


def _load(target): # 'module:name' below nrf_repro, or 'module'
    module, _, name = target.partition(':')
    found = import_module(f'nrf_repro.{module}')
    return getattr(found, name) if name else found


def _lazy(package, modules, old=None):
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


def _renamed(package, names):
    """For a package's `__init__`: a `__getattr__` that gives old public names, name -> object, with a DeprecationWarning.

    They work for one release. Raises AttributeError for another name, as modules do.
    """
    def __getattr__(name):
        if name not in names: raise AttributeError(f'module {package!r} has no attribute {name!r}')
        _warn(f'{package}.{name}', names[name].__name__)
        return names[name]

    return __getattr__


def _old_module(path, names):
    "Make a module of an earlier release importable: its names -> 'module:name' below nrf_repro. Using one is a DeprecationWarning."
    module = ModuleType(path, 'A module of an earlier release.')
    module.__getattr__ = _lazy(path, {}, names)[0]
    sys.modules[path] = module


# Names of the release before, which published notebooks import. They go with the next release.
_INTERACTIVE = dict(living_meta='report.interactive:interactive_meta', living_html='report.interactive:interactive_html',
                    living_data='report.interactive:interactive_data', write_living='report.interactive:write_interactive')
_EXPERIMENT = dict(PARTS='experiment.profile:PARTS', Cell='experiment.profile:NetworkId', build_folder='experiment.profile:build_folder',
                   load_profile='experiment.profile:load_profile', device_of='experiment.plan:resolve_device',
                   report_meta='experiment.provenance:report_meta', whole='experiment.run:successful_runs',
                   all_went_well='experiment.run:raise_on_failures')
_old_module('nrf_repro.living', _INTERACTIVE)
_old_module('nrf_repro.report.recording', {name: f'report.interactive:{name}' for name in ('interactive_data', 'write_interactive')})
_old_module('nrf_repro.experiment.runs', _EXPERIMENT)

__getattr__, __dir__, __all__ = _lazy(__name__, _by_package(), dict(figures='report.figures', tables='report.tables', render='report.rendering:render_report'))
