"""The reference: each public name of a module with its signature, its sentence and the comments on its parameters."""
import ast
import importlib
import re
from dataclasses import dataclass
from functools import cached_property

DEFS = (ast.FunctionDef, ast.ClassDef)


@dataclass
class Object:
    "A public name and where it was written."
    name: str
    node: ast.AST       # its definition or assignment
    cell: str           # id of the notebook's cell
    owner: str = ''     # the class that a method was patched into


@dataclass
class Module:
    "A module and what is written in it."
    name: str
    source: str
    objects: list       # of `Object`, in the order of the book

    @property
    def doc(self): return ast.get_docstring(ast.parse(self.source)) or ''
    @property
    def notebook(self): return re.search(r'File to edit: (?:\.\./)+nbs/(?:\d_\w+/)?(\w+)\.ipynb', self.source)[1]
    @cached_property
    def live(self): return importlib.import_module(f'nrf_repro.{self.name}')


def dotted(path):
    "The name of a module below nrf_repro, such as theory.rescaling."
    parts = path.with_suffix('').parts
    return '.'.join(parts[len(parts) - parts[::-1].index('nrf_repro'):])


def modules(paths):
    "The modules that notebooks export and that have public names, in the order of the book."
    found = [read_module(dotted(p), p.read_text(encoding='utf-8')) for p in paths if not p.stem.startswith('_')]
    return sorted((m for m in found if m.objects and 'File to edit' in m.source), key=lambda m: m.notebook)


def read_module(name, source):
    tree = ast.parse(source)
    public = next((ast.literal_eval(n.value) for n in tree.body if names_of(n) == ['__all__']), [])
    cells = [(source[:m.start()].count('\n'), m[1]) for m in re.finditer(r'^# %% \S+ #(\S+)$', source, re.M)]
    def cell(node): return next((id for line, id in reversed(cells) if line < node.lineno), '')
    found = [Object(n, node, cell(node), owner_of(node)) for node in tree.body for n in names_of(node)]
    return Module(name, source, [o for o in found if o.name in public or (o.owner in public and documented(o.node))])


def names_of(node):
    "The names that a statement defines."
    if isinstance(node, DEFS): return [node.name]
    if isinstance(node, ast.Assign): return [n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)]
    return []


def owner_of(node):
    "The class that fastcore's `@patch` adds a function to."
    patched = any('patch' in ast.unparse(d) for d in getattr(node, 'decorator_list', ()))
    return ast.unparse(node.args.args[0].annotation) if patched else ''


def documented(node): return bool(ast.get_docstring(node)) or bool(comments_expected(node))


def comments_expected(node):
    a = node.args
    return [x for x in (*a.posonlyargs, *a.args, *a.kwonlyargs) if x.arg not in ('self', 'cls')]


def safe(text):
    "Plain text for a Markdown table: backticks stay, everything else is taken as it is."
    def quoted(part): return re.sub(r'([\\|*_$<>\[\]{}~#])', r'\\\1', part)
    parts = re.split(r'(`[^`]+`)', text or '')
    return ''.join(p.replace('|', r'\|') if i % 2 else quoted(p) for i, p in enumerate(parts))


def signature(node, method=False):
    "As it was written, without the comments; patched methods without `self`."
    args = ast.unparse(node.args)
    if method: args = re.sub(r'^self(: \w+)?(, |$)', '', args)
    return f'({args})' + (f' -> {ast.unparse(node.returns)}' if node.returns else '')


def table(docs, nodes):
    "Parameters and what their comments say; '' where no parameter has a comment."
    said = {name: d.docment for name, d in docs.items() if name not in ('self', 'return')}
    if not any(said.values()) and not (docs.get('return') and docs['return'].docment): return ''
    def words(text): return safe(' '.join((text or '').split()))
    rows = [(f'`{name}`', code(nodes.get(name)), words(text)) for name, text in said.items()]
    if 'return' in docs and docs['return'].docment: rows.append(('*returns*', '', words(docs['return'].docment)))
    rows = [('parameter', 'default', 'what it is'), ('---',) * 3, *rows]
    if not any(default for _, default, _ in rows[2:]): rows = [(name, what) for name, _, what in rows]
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def code(text): return f'`{text}`'.replace('|', r'\|') if text else ''


def defaults(node):
    "Parameter or field -> its default as written."
    if isinstance(node, ast.ClassDef):
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
        return {n.target.id: ast.unparse(n.value) for n in fields if n.value}
    a = node.args
    late = dict(zip([x.arg for x in a.args][::-1], [ast.unparse(d) for d in a.defaults[::-1]]))
    return late | {x.arg: ast.unparse(d) for x, d in zip(a.kwonlyargs, a.kw_defaults) if d}


def docments_of(live):
    from fastcore.docments import docments
    if isinstance(live, property): live = live.fget
    try: return docments(live, full=True)
    except Exception: return {}     # no Python source, as for a partial


def block(kind, head, body, options=()):
    "A directive of Sphinx's Python domain, fenced so that code blocks fit in."
    return '\n'.join([f'::::{{py:{kind}}} {head}', *options, '', body, '::::'])


def links(module, o, cfg):
    "Where it is written: in the module, and in the book."
    first = min([o.node.lineno, *(d.lineno for d in getattr(o.node, 'decorator_list', ()))])
    url = f'{cfg["git_url"]}/blob/{cfg["branch"]}/nrf_repro/{module.name.replace(".", "/")}.py#L{first}-L{o.node.end_lineno}'
    book = f'../{module.notebook}.html#cell-{o.cell}'
    return f'<p class="written"><a href="{book}">In the book</a> <a href="{url}">Source</a></p>'


def function(module, o, cfg):
    "A function, or a method that was patched into a class."
    live = getattr(getattr(module.live, o.owner, module.live), o.name, None)
    is_property = any('as_prop=True' in ast.unparse(d) for d in o.node.decorator_list)
    doc = safe(ast.get_docstring(o.node))
    body = '\n\n'.join(filter(None, [doc, table(docments_of(live), defaults(o.node)), links(module, o, cfg)]))
    name = f'{o.owner}.{o.name}' if o.owner else o.name
    if is_property: return block('property', name, body)
    return block('method' if o.owner else 'function', name + signature(o.node, method=bool(o.owner)), body)


def klass(module, o, cfg):
    "A class: what it is made from, and its documented methods."
    made = next((n for n in o.node.body if isinstance(n, ast.FunctionDef) and n.name == '__init__'), None)
    known = defaults(o.node)
    fields = [f'{name}={known[name]}' if name in known else name
              for name in (n.target.id for n in o.node.body if isinstance(n, ast.AnnAssign))]
    head = o.name + (signature(made, method=True) if made else f'({", ".join(fields)})' if fields else '')
    rows = table(docments_of(getattr(module.live, o.name)), defaults(made or o.node))
    own = [Object(n.name, n, o.cell, o.name) for n in o.node.body
           if isinstance(n, ast.FunctionDef) and n is not made and ast.get_docstring(n)]
    methods = [function(module, m, cfg) for m in own]
    body = '\n\n'.join(filter(None, [safe(ast.get_docstring(o.node)), rows, links(module, o, cfg), *methods]))
    return block('class', head, body).replace('::::{py:class}', ':::::{py:class}')[:-4] + ':::::'


def data(module, o, cfg):
    "A constant, as it was written."
    text = '\n'.join(module.source.splitlines()[o.node.lineno - 1:o.node.end_lineno])
    return block('data', o.name, f'```python\n{text}\n```\n\n{links(module, o, cfg)}')


def page(module, cfg):
    "The reference of a module."
    from_class = {ast.FunctionDef: function, ast.ClassDef: klass}
    seen, parts = set(), []
    for o in module.objects:
        if (key := (o.owner, o.name)) not in seen: parts.append(from_class.get(type(o.node), data)(module, o, cfg))
        seen.add(key)
    chapter = f'[The chapter](../{module.notebook}.ipynb) tells how it came about.'
    head = f'# nrf\\_repro.{module.name}\n\n{safe(module.doc)}\n\n{chapter}'
    return '\n\n'.join([head, f'```{{py:module}} nrf_repro.{module.name}\n```', *parts]) + '\n'


def command_line(page):
    "What `nrf-repro --help` says, before the reference of the module `cli`."
    if not page: return None
    from nrf_repro.cli import build_parser
    def commands_of(words): return next(a for a in words._actions if isinstance(getattr(a, 'choices', None), dict)).choices
    subs = commands_of(build_parser())
    whole = (build_parser(), *(commands_of(build_parser(name))[name] for name in subs))     # a command knows its own words once it is meant
    helps = [f'```text\n{p.format_help().strip()}\n```' for p in whole]
    heads = ['## The command', *(f'## nrf-repro {name}' for name in subs)]
    title, rest = page.split('\n\n', 1)
    commands = '\n\n'.join(f'{h}\n\n{t}' for h, t in zip(heads, helps))
    return f'{title}\n\n{commands}\n\n## The module\n\n{rest}'
