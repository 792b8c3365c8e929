"""The verdicts on the published rows with their stability, for the first page of the site.

Computing them takes two minutes, so they are stored in verdicts.json beside a hash of what they were computed from.
`python docs/verdicts.py` computes again what has changed.
"""
import hashlib
import json
import math
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
STORED = ROOT / 'docs/verdicts.json'
FIELDS = ('id', 'part', 'verdict', 'effect', 'low', 'high', 'n_seeds', 'paper_effect')


def published(root=ROOT):
    "Profile -> its folder, for all that are published with rows."
    return {p.parent.name: p.parent for p in sorted(root.glob('reports/published/*/rows.jsonl'))}


def hash_of(folder, root=ROOT):
    "Of everything that decides a profile's verdicts: its rows, the rules without their words, and the paper's numbers."
    files = [folder / 'rows.jsonl', *sorted((root / 'reports/paper').glob('*.csv'))]
    rules = rules_of((root / 'reports/claims.yaml').read_text(encoding='utf-8'))
    return hashlib.sha256(b''.join(hashlib.sha256(p.read_bytes()).digest() for p in files) + rules.encode()).hexdigest()


def rules_of(text):
    "What decides in claims.yaml: not its comments, and not what is said of a claim beside its verdict."
    given = yaml.safe_load(text)
    claims = [{k: v for k, v in claim.items() if k not in ('title', 'statement', 'chapter', 'controls')} for claim in given['claims']]
    return json.dumps(dict(rules=given['rules'], claims=claims), default=str)     # str: dates


def compute(profile, rows, claims):
    "The verdict on each claim and each part, in how many variants the verdict is the same, and the networks' effects, and how the controls compare."
    from nrf_repro.report.forest import control_effects
    from nrf_repro.report.readings import control_answers
    from nrf_repro.report.sensitivity import sensitivity
    from nrf_repro.results.claims import decide_published
    from nrf_repro.results.paired import effects
    decided, parts = decide_published(claims, {profile: rows})
    same = sensitivity(claims, rows).groupby('id').same
    controls, answers = control_effects(rows, claims['C2']), control_answers(rows, claims, 'C2')
    def networks(claim):
        "The effect of the claim's first part in each network, the largest first."
        found = effects(claim, rows).query('part == @claim.parts[0].name and room')
        return lines(found.reindex(found.effect.abs().sort_values(ascending=False).index), ('arch', 'effect', 'low', 'high', 'n_seeds', 'interval'))
    return dict(decided=lines(decided, (*FIELDS, 'complete')), parts=lines(parts, FIELDS),
                networks={id: networks(claims[id]) for id in ('C1', 'C2')}, stable={id: [int(part.sum()), len(part)] for id, part in same},
                controls=dict(tried=len(controls), all=sum(answers.answer == 'all of it') if len(answers) else 0, lost=sum(bool(iv.high < 0) for iv in controls.from_none),
                              kept=sum(bool(iv.low > 0) for iv in controls.from_bn)))


def lines(frame, fields):
    "A frame as JSON can hold it, without NaN."
    def plain(v):
        if isinstance(v, float): return None if math.isnan(v) else v
        return v.item() if hasattr(v, 'item') else v
    return [{f: plain(r[f]) for f in fields} for r in frame.to_dict('records')]


def current(root=ROOT, stored=None):
    "Profile -> verdicts: from the file where its hash fits, else computed."
    stored = json.loads(STORED.read_text(encoding='utf-8')) if stored is None else stored
    found, claims = {}, None
    for profile, folder in published(root).items():
        if stored.get(profile, {}).get('hash') == (now := hash_of(folder, root)): found[profile] = stored[profile]; continue
        from nrf_repro.results.rows import read_rows
        from nrf_repro.results.rules import load_claims
        print(f'The rows or the rules of {profile} have changed: computing its verdicts takes up to two minutes.', file=sys.stderr)
        claims = claims or load_claims(root / 'reports/claims.yaml')
        found[profile] = dict(hash=now) | compute(profile, read_rows(folder / 'rows.jsonl'), claims)
    return found


def dump(found):
    "The file's text: a line for each verdict, so that a change shows which one."
    def entry(value):
        if not isinstance(value, list): return json.dumps(value, ensure_ascii=False)
        return '[\n   ' + ',\n   '.join(json.dumps(v, ensure_ascii=False) for v in value) + ']'
    def profile(p): return '{\n' + ',\n'.join(f'  {json.dumps(k)}: {entry(v)}' for k, v in p.items()) + '}'
    return '{\n' + ',\n'.join(f' {json.dumps(name)}: {profile(p)}' for name, p in found.items()) + '\n}\n'


def write(root=ROOT):
    "Store what is current."
    text = dump(current(root, None if STORED.is_file() else {}))
    if not STORED.is_file() or STORED.read_text(encoding='utf-8') != text: STORED.write_text(text, encoding='utf-8')


if __name__ == '__main__':
    sys.path.insert(0, str(ROOT))
    write()
