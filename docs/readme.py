"""README.md is nbs/index.ipynb as Markdown: no Quarto, figures as files, nbdev's directives left out."""
import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def cell_text(cell):
    "Markdown of a cell with its text output; '' for a cell that is hidden."
    source = ''.join(cell['source'])
    if source.startswith('#| hide'): return ''
    if cell['cell_type'] == 'markdown': return source
    code = '\n'.join(line for line in source.splitlines() if not line.startswith('#|'))
    printed = ''.join(''.join(o.get('text', '')) or ''.join(o.get('data', {}).get('text/markdown', '')) for o in cell['outputs'])
    if re.search(r'^#\| output: asis', source, re.M): return printed
    if re.search(r'^#\| echo: false', source, re.M): return f'```\n{printed.rstrip()}\n```'
    return f'```python\n{code}\n```' + (f'\n\n```\n{printed.rstrip()}\n```' if printed else '')


def render(notebook):
    parts = [cell_text(c).strip() for c in json.loads(notebook.read_text(encoding='utf-8'))['cells']]
    text = '\n\n'.join(filter(None, parts)).replace('](../', '](')       # links from the root, not from nbs/
    text = re.sub(r'\]\((\d_\w+/\w+\.ipynb)\)', r'](nbs/\1)', text)
    return '<!-- Rendered from nbs/index.ipynb by docs/readme.py: edit the notebook. -->\n' + text + '\n'


if __name__ == '__main__':
    (ROOT / 'README.md').write_text(render(ROOT / 'nbs/index.ipynb'), encoding='utf-8')
