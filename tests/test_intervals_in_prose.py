"Every `estimate [low, high]` in the text of the first chapters stands in a stored output of the same notebook."
import json
import re
from pathlib import Path

import pytest

NBS = Path(__file__).parents[1] / 'nbs'
INTERVAL = re.compile(r'-?\d+\.\d+ \[-?\d+\.\d+, -?\d+\.\d+\]')


def stored_text(cell):
    "The text of a cell's outputs."
    for output in cell.get('outputs', ()):
        yield ''.join(output.get('text', ()))
        yield ''.join(output.get('data', {}).get('text/html', ()))


@pytest.mark.parametrize('name, at_least', [('1_normalisation/02_covariate_shift', 6), ('1_normalisation/04_smoothness', 6)])
def test_intervals_in_the_text_stand_in_an_output(name, at_least):
    cells = json.loads((NBS / f'{name}.ipynb').read_text(encoding='utf-8'))['cells']
    text = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    outputs = '\n'.join(part for c in cells for part in stored_text(c))
    claimed = INTERVAL.findall(text)
    assert len(claimed) >= at_least
    assert [c for c in claimed if c not in outputs] == []
