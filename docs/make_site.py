"""The site from the notebooks as they are stored: no Quarto, nothing executed. `make site` writes _site/.

Chapters become notebooks without nbdev's directives and hidden cells, the reference and a few pages become Markdown,
and Sphinx turns both into HTML that needs no network.
"""
import argparse
import configparser
import json
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import chapters
import front
import pages
import reference

ROOT = Path(__file__).parent.parent


def settings(root=ROOT):
    "settings.ini as a dict."
    ini = configparser.ConfigParser()
    ini.read(root / 'settings.ini', encoding='utf-8')
    return dict(ini['DEFAULT'])


def book_notebooks(root=ROOT):
    "The index and the chapters, in the order of the book."
    return [p for p in sorted((root / 'nbs').rglob('[!._]*.ipynb'), key=lambda p: p.stem) if '.ipynb_checkpoints' not in p.parts]


def sources(root, notebooks, modules):
    "Path below the source folder -> text, for everything that Sphinx reads."
    cfg = settings(root) | dict(published={str(p.relative_to(root)) for p in pages.published_files(root)})
    book = {p.stem: json.loads(p.read_text(encoding='utf-8')) for p in notebooks}
    parts = {p.stem: p.parent.name for p in notebooks}
    found = reference.modules(modules)
    site = {f'api/{m.name}.md': reference.page(m, cfg) for m in found}
    site['tasks.md'] = pages.api(found)
    site['api/cli.md'] = reference.command_line(site.get('api/cli.md'))
    site |= {f'{name}.md': text for name, text in pages.all_pages(root, cfg).items()}
    home = book.pop('index', None) or pages.home(cfg)
    site['overview.ipynb'] = chapters.overview(home, list(book), cfg, found)
    site['glossary.md'] = front.glossary(book)
    site['learn.md'] = front.learn(book, parts, chapters.part_title, chapters.number_of, chapters.title_of)
    site |= {f'{name}.ipynb': chapters.page(name, nb, list(book), cfg, found, parts[name]) for name, nb in book.items()}
    site['index.md'] = f'{front.page(root, cfg)}\n\n{chapters.trees(book, [m.name for m in found], parts)}\n'
    return {name: text for name, text in site.items() if text}


def pictures(root, texts):
    "The files of the project that the texts show, under the names by which they show them."
    names = {m for text in texts.values() for m in re.findall(r'\(files/([^)\s\\]+)\)', text)}
    return {f'files/{name}': (root / name).read_bytes() for name in names if (root / name).is_file()}


def write(folder, files):
    "Write what changed, so that Sphinx reads again only what it must, and remove what is gone: then returns True."
    for name, content in files.items():
        path, content = folder / name, content if isinstance(content, bytes) else content.encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_bytes() != content: path.write_bytes(content)
    gone = [p for p in folder.rglob('*') if p.is_file() and p.relative_to(folder).as_posix() not in files]
    for path in gone: path.unlink()
    return bool(gone)


def render(work):
    "Sphinx from work/source to work/html; a warning is a failure. Returns the exit status."
    from sphinx.cmd.build import main as sphinx
    return sphinx(['-q', '-W', '--keep-going', '-b', 'html', '-c', str(ROOT / 'docs'), '-d', str(work / 'doctrees'),
                   str(work / 'source'), str(work / 'html')])


def without_placeholders(html, git_url):
    "A page without links to a repository that is not public: buttons go, other links become their text."
    name = re.escape(git_url.partition('github.com/')[2])
    link = rf'<a\b([^>]*)href="https://(?:colab\.research\.google\.com/github/|github\.com/){name}[^"]*"([^>]*)>(.*?)</a>'
    def text(m): return '' if re.search('badge|btn', m[1] + m[2]) or m[3] == 'Source' else m[3]
    return re.sub(link, text, html, flags=re.S)


def build(out, work, root=ROOT):
    "Build the site into `out`, by way of `work`, which makes the next time faster. Returns the exit status."
    notebooks, modules = book_notebooks(root), sorted((root / 'nrf_repro').rglob('[a-z]*.py'))
    texts = sources(root, notebooks, modules)
    if write(work / 'source', texts | pictures(root, texts)):       # a page less: its HTML must not stay
        for name in ('html', 'doctrees'): shutil.rmtree(work / name, ignore_errors=True)
    status = render(work)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(work / 'html', out, ignore=shutil.ignore_patterns('.buildinfo*', '*.map'))
    pages.copy_reports(root, out)
    cfg = settings(root)
    if cfg['public'] != 'True':
        for page in out.glob('**/*.html'):
            if 'published' not in page.relative_to(out).parts:
                page.write_text(without_placeholders(page.read_text(encoding='utf-8'), cfg['git_url']), encoding='utf-8')
    return status


if __name__ == '__main__':
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument('--out', default=ROOT / '_site', type=Path)
    words.add_argument('--fresh', action='store_true', help='forget what was built before')
    given = words.parse_args()
    if given.fresh: shutil.rmtree(ROOT / '_proc/site', ignore_errors=True)
    status = build(given.out, ROOT / '_proc/site')
    print(f'{given.out / "index.html"}' if not status else 'The site has the faults that are listed above.')
    sys.exit(status)
