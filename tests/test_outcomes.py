"Rows keep the outcome of each test image."
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from nrf_repro.results.outcomes import check_outcomes, outcome_fields, pack_outcomes, unpack_outcomes
from nrf_repro.results.rows import make_row, read_rows, write_rows

COMMON = dict(experiment='final', dataset='digits', arch='vgg11', norm='bn', width=1., regime='standard', epoch=3, seed=0, profile='p')

@given(values=hnp.arrays(np.bool_, st.integers(1, 70)))
def test_bits_come_back_as_they_were(values):
    assert (unpack_outcomes(pack_outcomes(values), len(values)) == values).all()

@given(values=hnp.arrays(np.float64, st.integers(1, 30), elements=st.one_of(st.floats(-1, 1), st.just(math.nan))))
def test_cosines_come_back_up_to_16_bits(values):
    n = int(np.isfinite(values).sum())
    back = unpack_outcomes(pack_outcomes(values), n) if not np.isin(values, (0, 1)).all() else values
    np.testing.assert_allclose(back, values, atol=1 / 32767)

@pytest.mark.parametrize('metric,values', [('clean_accuracy', torch.tensor([True, False, True])), ('ligs', torch.tensor([.5, math.nan, -.25])),
                                           ('ligs', torch.full((4,), math.nan)), ('clean_accuracy', torch.zeros(9, dtype=torch.bool))])
def test_a_row_with_outcomes_is_written_and_read(tmp_path, metric, values):
    more = dict(sigma=.01) if metric == 'ligs' else {}
    row = make_row(metric=metric, value=values.double().nanmean().item(), **outcome_fields(values, 'abc'), **more, **COMMON)
    rows = read_rows(write_rows(tmp_path / 'rows.jsonl', [row]))
    np.testing.assert_allclose(unpack_outcomes(rows.outcomes[0], rows.n[0]), values.double(), atol=1e-4)
    assert rows.n[0] == values.double().isfinite().sum() and rows.images[0] == 'abc'

def test_rows_without_outcomes_need_no_room(tmp_path):
    path = write_rows(tmp_path / 'rows.jsonl', [make_row(metric='clean_accuracy', value=.5, n=4, **COMMON)])
    assert not {'outcomes', 'images', 'precision'} & set(json.loads(path.read_text()))
    assert read_rows(path).outcomes.isna().all()

@pytest.mark.parametrize('change,says', [
    (dict(value=.25), 'of another row'), (dict(n=2), 'outcomes of'), (dict(images=None), 'give all three'), (dict(outcomes='bits:%%'), 'no base64'),
    (dict(outcomes='int16:AAAA'), 'not those of'), (dict(outcomes='pickle:gASV'), 'not those of'), (dict(n=20), 'not those of'), (dict(n=None), 'give all three')])
def test_outcomes_that_are_not_those_of_the_row_are_an_error(change, says):
    row = dict(metric='clean_accuracy', value=2 / 3) | outcome_fields(np.array([1, 0, 1]), 'abc')
    check_outcomes(row)
    with pytest.raises(ValueError, match=says): make_row(**COMMON | row | change)
