# Made by docs/stubs.py from the names in __init__.py: `make book` writes it anew.
from nrf_repro.report.comparison import compare as compare
from nrf_repro.report.comparison import render_compare as render_compare
from nrf_repro.report.rendering import render_report as render_report
from nrf_repro.report.tables import table_1 as table_1
from nrf_repro.report.tables import table_2 as table_2
