"""Rows of results, intervals, and the rules that decide the claims."""
from nrf_repro import _lazy

__getattr__, __dir__, __all__ = _lazy(__name__, {
    'results.rows': 'frame make_row read_rows write_rows paper_rows read_published',
    'results.outcomes': 'pack_outcomes unpack_outcomes',
    'results.intervals': 'Interval wilson paired_interval t_interval two_way',
    'results.rules': 'Claim Part load_claims',
    'results.paired': 'effects',
    'results.claims': 'decide decide_published headline'})
