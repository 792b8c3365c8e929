"""`python -m nrf_repro` is `nrf-repro`."""
import sys

from nrf_repro.cli import main

sys.exit(main())
