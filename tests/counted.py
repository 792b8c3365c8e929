"""What the robustness tests did, as numbers: `NRF_COUNTS=docs/robustness pytest ...` leaves them for the page of the site."""
import json
import os
from pathlib import Path


def count(group, name, **numbers):
    "Note how much a test did, if somebody wants to know."
    if not (folder := os.environ.get('NRF_COUNTS')): return
    file = Path(folder, f'{group}--{name}.json'.replace(' ', '-'))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(dict(group=group, name=name) | numbers) + '\n', encoding='utf-8')
