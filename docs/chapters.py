"""A chapter of the site: a stored notebook without nbdev's directives, hidden cells and noise."""
import ast
import json
import re
from hashlib import md5

import captions
import drawings
from chapter_links import LINKS

NUMERALS = ('', 'I', 'II', 'III', 'IV', 'V')
PARTS = dict(normalisation='Normalisation', robustness='Measuring robustness', trade_off='Does BN trade robustness for accuracy?',
             consequences='Consequences', how_it_works='How it works')
LONG = 24        # lines of code from which a cell is folded
BADGES = '''<p class="badges"><span>Chapter {number}</span>
<a class="badge colab" title="{install}"
   href="https://colab.research.google.com/github/{repo}/blob/{branch}/nbs/{path}.ipynb"
  ><b aria-hidden="true">∞</b> Open in Colab</a>
<a class="badge" href="{git_url}/blob/{branch}/nbs/{path}.ipynb">Notebook on GitHub</a></p>'''


def split_directives(source):
    "nbdev's and Quarto's `#|` lines as a dict, and the code without them."
    lines = source.splitlines()
    given = [line.strip()[2:].strip() for line in lines if re.match(r'\s*#\|', line)]
    pairs = (re.match(r'([\w-]*):?\s*(.*)', g).groups() for g in given)
    kept = [line for line in lines if not re.match(r'\s*#\|', line) and not re.search(r'#\|\s*hide_line\s*$', line)]
    return dict(pairs), '\n'.join(kept).strip('\n')


def text_of(source): return source if isinstance(source, str) else ''.join(source)


def code_tree(code):
    try: return ast.parse(code).body
    except SyntaxError: return []    # a magic


def only_imports(code):
    "Nothing but imports, and the settings of the plots that go with them."
    body = code_tree(code)
    def quiet(node):
        if isinstance(node, (ast.Import, ast.ImportFrom)): return True
        return bool(re.match(r'(figures\.)?style\(|plt\.rcParams|(pd|torch|np)\.\w*set\w*|warnings\.', ast.unparse(node)))
    return bool(body) and all(map(quiet, body)) and any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in body)


DRAWING = re.compile(r'(ax|axs|axes|fig|plt|sns|left|right|legend|handles?)\w*')
QUIET = {'dict', 'zip', 'enumerate', 'range', 'list', 'tuple', 'sorted', 'min', 'max', 'len', 'str', 'int', 'float', 'slice', 'reversed'}


def only_draws(code):
    "Nothing but calls of Matplotlib on its axes, and what they loop over: it computes nothing that a reader must see."
    body = code_tree(code)
    return bool(body) and any(draws(n) for n in body) and all(draws(n) or plain(n) for n in body)


def root_of(node):
    "The first name of `a.b[0].c(...)`; '' for anything else."
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)): node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ''


def draws(node):
    "A call on axes or a figure, or a loop of such calls."
    if isinstance(node, (ast.For, ast.With, ast.If)): return all(draws(n) or plain(n) for n in (*node.body, *getattr(node, 'orelse', ())))
    if isinstance(node, (ast.Expr, ast.Assign)) and isinstance(node.value, ast.Call): return bool(DRAWING.fullmatch(root_of(node.value)))
    return False


def plain(node):
    "An assignment that calls nothing but Python's own functions, or `;`-like statements."
    if not isinstance(node, (ast.Assign, ast.Pass)): return False
    return all(root_of(n) in QUIET for n in ast.walk(node) if isinstance(n, ast.Call))


def fold(words, code):
    "What is written on a folded cell; None for a cell that is shown."
    lines = len(code.splitlines())
    if words.get('code-fold') in ('false', 'show'): return None
    if only_imports(code): return f'Show the imports ({lines} lines)' if lines > 2 else None
    if lines > 3 and only_draws(code): return f'Show the code of the figure ({lines} lines)'
    if words.get('code-fold') == 'true' or lines > LONG: return f'{words.get("code-summary", "Show the code")} ({lines} line{"s" * (lines > 1)})'
    return None


def is_noise(output):
    "Warnings and progress bars on stderr: they speak of one machine and one moment, not of the chapter."
    if output.get('name') != 'stderr': return False
    text = text_of(output['text'])
    return not text.strip() or bool(re.search(r'Warning:|\[IPKernelApp\]|\d%\|', text))


def without_empty_heads(output):
    "The corner of a table of pandas is an empty heading, which a screen reader would announce."
    if not (html := text_of(output.get('data', {}).get('text/html', ''))): return output
    return output | dict(data=output['data'] | {'text/html': re.sub(r'<th([^>]*)>\s*</th>', r'<td\1></td>', html)})


def markdown_of(outputs):
    "What cells with `output: asis` print."
    found = (text_of(o.get('text', '')) or text_of(o.get('data', {}).get('text/markdown', '')) for o in outputs)
    return '\n\n'.join(filter(None, found))


def new_cell(kind, source, **more):
    id = md5(source.encode()).hexdigest()[:8]
    return dict(cell_type=kind, id=id, metadata={}, source=source) | more


def code_cell(cell, words, code, heading, module, caption='', said=''):
    "A code cell as cells of the site. `caption` of its figure, and what else is `said` of it."
    outputs = [captions.lighter(without_empty_heads(o)) for o in cell.get('outputs', []) if not is_noise(o)]
    asis = words.get('output') == 'asis'
    silent = asis or words.get('output') == 'false' or 'hide_output' in words
    shown = code and words.get('echo') != 'false' and 'hide_input' not in words
    tags, mystnb = [], {}
    if not shown: tags.append('remove-input')
    elif prompt := fold(words, code): tags.append('hide-input'); mystnb['code_prompt_show'] = prompt
    if exported := words.keys() & {'export', 'exports', 'exporti'}: tags.append('exported')
    outputs_shown = [] if silent else outputs
    last, made = (captions.pictures_of(dict(outputs=outputs_shown)) or [None])[-1], []
    for i, run in enumerate(runs(outputs_shown)):
        mine = caption if run and run[-1] is last else ''
        if drawing := drawings.svg_of(run[0]) if run else '':
            alt = captions.alternative(mine, said or caption, heading)
            made.append(new_cell('markdown', drawings.figure(drawing, alt, f'f{cell.get("id", "")}{i}-', mine)))
            continue
        told = {} if i else dict(mystnb)
        if any(o is last for o in run): told |= captions.options(last, caption, said, heading)
        metadata = dict(tags=['remove-input'] if i else tags) | (dict(mystnb=told) if told else {})
        made.append(new_cell('code', '' if i else code, execution_count=None, outputs=run, metadata=metadata))
    if not shown and not made[0]['outputs']: made.pop(0)
    before = [new_cell('markdown', label(cell, module))] if exported and shown else []
    after = [new_cell('markdown', markdown_of(outputs))] if asis and outputs else []
    return [*before, *made, *after]


def runs(outputs):
    "The outputs as lists: first those below the code, maybe none, then each drawing by itself, and what is printed between two."
    found = [[]]
    for o in outputs:
        if drawings.svg_of(o): found.append([o])
        elif found[-1] and drawings.svg_of(found[-1][0]): found.append([o])
        else: found[-1].append(o)
    return found


def label(cell, module):
    "Says that a cell is part of the package, and is where the reference links to."
    return f'<p class="exported" id="cell-{cell.get("id", "")}">nrf_repro.{module}</p>'


def convert(nb):
    "The cells of a notebook as the site shows them."
    module, heading = default_exp(nb), ''
    cells = captions.attach(nb['cells'])
    for cell in cells:
        source = text_of(cell['source'])
        if cell['cell_type'] != 'code':
            words, text = split_directives(source) if source.startswith('#|') else ({}, source)
            if 'hide' in words or LINKS.match(text): continue      # the theme links to the neighbours itself
            heading = (re.findall(r'^#+ (.+)$', text, re.M) or [heading])[-1]
            if text.strip(): yield new_cell('markdown', text)
            continue
        words, code = split_directives(source)
        if 'hide' in words or words.get('include') == 'false': continue
        if 'nb_export(' in code or 'nbdev_export(' in code: continue
        yield from code_cell(cell, words, code, heading, module, cell.get('caption', ''), cell.get('said', ''))


def default_exp(nb):
    "The module that a notebook exports, or ''."
    code = (text_of(c['source']) for c in nb['cells'] if c['cell_type'] == 'code')
    found = (split_directives(source)[0].get('default_exp') for source in code)
    return next(filter(None, found), '')


def number_of(name): return int(m[0]) if (m := re.match(r'\d+', name)) else None


# What is added to the prose: links, and the voice that speaks

def outside_code(text, change):
    "Apply `change` to the text between fenced blocks."
    parts = re.split(r'(^```.*?^```|^~~~.*?^~~~)', text, flags=re.M | re.S)
    return ''.join(part if i % 2 else change(part) for i, part in enumerate(parts))


def voices(text):
    "The first quotation is the chapter's claim; others are the paper's or the talk's."
    text = re.sub(r'\A(\s*# [^\n]+\n+)(?=> )', r'\1{.claim}\n', text)
    return re.sub(r'(\A|\n\n)(?=> \*\*(Paper|Talk)\b)', lambda m: f'{m[1]}{{.{m[2].lower()}}}\n', text)


def known_names(nb, modules):
    "Name -> module, for what a notebook exports or imports from the package."
    mine, used = default_exp(nb), {}
    code = '\n'.join(split_directives(text_of(c['source']))[1] for c in nb['cells'] if c['cell_type'] == 'code')
    for path, names in re.findall(r'^from nrf_repro\.([\w.]+) import \(?([\w, \n]+)', code, re.M):
        used |= dict.fromkeys(re.findall(r'\w+', names), path)
    used |= {o.name: m.name for m in modules if m.name == mine for o in m.objects}
    there = {}
    for m in modules:                                   # a package passes on the names of its modules
        for o in m.objects: there |= {(place, o.name): m.name for place in (m.name, m.name.rpartition('.')[0])}
    return {name: there[place, name] for name, place in used.items() if (place, name) in there}


def link_names(text, names):
    "`name` -> a link to the reference, except in headings and in links."
    def link(m): return f'{{py:obj}}`{m[1]} <nrf_repro.{names[m[1]]}.{m[1]}>`' if m[1] in names else m[0]
    def linked(line): return line if line.startswith('#') else re.sub(r'(?<![\[`}])`(\w+)`(?!`)', link, line)
    return '\n'.join(map(linked, text.split('\n')))


def link_chapters(text, names):
    "Links between chapters in the folders of their parts -> links between pages, which lie in one folder."
    def link(m): return f']({m[1]}.ipynb{m[2] or ""})' if m[1] in names else m[0]
    return re.sub(r'\]\((?:[\w.]+/)*(\w+)\.ipynb(#[^)]*)?\)', link, text)


def link_files(text, cfg, published=()):
    "Pictures of the project come along, published reports and pages are on the site, other files lead to the repository."
    def link(m):
        if m[2] in published: return f'<a href="{m[2].removeprefix("reports/")}">{m[1]}</a>'
        if page := re.fullmatch(r'docs/(?:pages/)?(\w+\.md)', m[2]): return f'[{m[1]}]({page[1]})'
        return f'[{m[1]}]({cfg["git_url"]}/blob/{cfg["branch"]}/{m[2]})'
    text = re.sub(r'(!\[[^\]]*\]\()(?:\.\./)+([^)\s]+)\)', r'\1files/\2)', text)
    return re.sub(r'(?<!!)\[([^\]]*)\]\((?:\.\./)+([^)\s]+)\)', link, text)


def prose(cells, nb, names, cfg, modules):
    "The cells, with the prose linked."
    known = known_names(nb, modules)
    def change(text): return link_files(link_chapters(link_names(voices(text), known), names), cfg, cfg['published'])
    return [c | dict(source=outside_code(c['source'], change)) if c['cell_type'] == 'markdown' else c for c in cells]


def notebook(cells):
    "The text of a notebook with these cells."
    for i, cell in enumerate(cells): cell['id'] = f'{i:03d}{cell["id"]}'     # unique
    kernel = dict(display_name='Python 3', language='python', name='python3')
    meta = dict(kernelspec=kernel, language_info=dict(name='python', pygments_lexer='ipython3'))
    return json.dumps(dict(cells=cells, metadata=meta, nbformat=4, nbformat_minor=5), ensure_ascii=False)


def page(name, nb, names, cfg, modules, part=''):
    "A chapter with its badges under its title. `part` is its folder below nbs/."
    cells = prose(captions.defined(list(convert(nb)), f'{part}/{name}'), nb, names, cfg, modules)
    repo = cfg['git_url'].partition('github.com/')[2]
    row = BADGES.format(**cfg | dict(number=number_of(name), path='/'.join(filter(None, (part, name))), repo=repo),
                        install=f'First cell to run there: %pip install git+{cfg["git_url"]}')
    if title := next((c for c in cells if c['cell_type'] == 'markdown' and c['source'].startswith('# ')), None):
        title['source'] = re.sub(r'\A(# [^\n]+\n)', lambda m: f'{m[1]}\n{row}\n', title['source'])
    return notebook(cells)


def toctree(caption, entries):
    return '\n'.join(['```{toctree}', ':hidden:', f':caption: {caption}', '', *entries, '```'])


def part_title(folder):
    "'2_robustness' -> 'II. Measuring robustness'."
    number, _, name = folder.partition('_')
    return f'{NUMERALS[int(number)]}. {PARTS.get(name, name.replace("_", " ").capitalize())}'


def trees(book, reference, parts=None):
    "The order of all pages, for the end of the first one. `parts`: chapter -> its folder below nbs/."
    titles = {name: title_of(chapter) or name for name, chapter in book.items()}
    folders = {n: (parts or {}).get(n, '') for n in titles}
    made = [*(toctree(part_title(folder) if folder else 'The book',
                      [f'{number_of(n)}  {t} <{n}>' for n, t in titles.items() if folders[n] == folder])
              for folder in dict.fromkeys(folders.values())),
            toctree('Results', ['reports', 'Findings, limits, profiles <overview>', 'benchmarks', 'robustness']),
            toctree('Using it', ['learn', 'test_a_model', 'glossary', 'add', 'cite', 'bibliography']),
            toctree('Reference', ['tasks', *(f'{m} <api/{m}>' for m in reference)])]
    return '\n\n'.join(made)


def overview(nb, names, cfg, modules):
    "nbs/index.ipynb as a page."
    return notebook(prose(list(convert(nb)), nb, names, cfg, modules))


def title_of(nb):
    "The first heading."
    return next((m[1].strip() for c in nb['cells'] if c['cell_type'] == 'markdown'
                 if (m := re.search(r'^# (.+)$', text_of(c['source']), re.M))), '')
