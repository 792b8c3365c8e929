"""Tables, figures and the report of a profile."""
from nrf_repro import _lazy

__getattr__, __dir__, __all__ = _lazy(__name__, {
    'report.rendering': 'render_report',
    'report.comparison': 'compare render_compare',
    'report.tables': 'table_1 table_2'},
    dict(render='report.rendering:render_report', all_tables='report.rendering:all_tables', reading_3='report.readings:reading_3'))
