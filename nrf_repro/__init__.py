"""Does batch normalisation learn non-robust features? A reproduction, and tools that measure any PyTorch classifier."""
from nrf_repro._lazy import lazy, old_module

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


def _by_package():
    "Package -> its public names in one string."
    found = {}
    for packages in TASKS.values():
        for package, names in packages.items():
            found[package] = f'{found.get(package, "")} {names}'
    return found


# Names of the release before, which published notebooks import. They go with the next release.
_INTERACTIVE = dict(living_meta='report.interactive:interactive_meta', living_html='report.interactive:interactive_html',
                    living_data='report.interactive:interactive_data', write_living='report.interactive:write_interactive')
_EXPERIMENT = dict(PARTS='experiment.profile:PARTS', Cell='experiment.profile:NetworkId', build_folder='experiment.profile:build_folder',
                   load_profile='experiment.profile:load_profile', device_of='experiment.plan:resolve_device',
                   report_meta='experiment.provenance:report_meta', whole='experiment.run:successful_runs',
                   all_went_well='experiment.run:raise_on_failures')
old_module('nrf_repro.living', _INTERACTIVE)
old_module('nrf_repro.report.recording', {name: f'report.interactive:{name}' for name in ('interactive_data', 'write_interactive')})
old_module('nrf_repro.experiment.runs', _EXPERIMENT)

__getattr__, __dir__, __all__ = lazy(__name__, _by_package(), dict(figures='report.figures', tables='report.tables', render='report.rendering:render_report'))
