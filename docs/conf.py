"""Sphinx: stored notebooks, formulas as MathML by temml, nothing from a network."""
import configparser
import re
import sys
from html import escape
from pathlib import Path

from docutils.nodes import SkipNode

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
import drawings
import front
from nrf_repro.report.html import mark_terms

cfg = configparser.ConfigParser()
cfg.read(Path(__file__).parent.parent / 'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']

project, author, release = cfg['title'], cfg['author'], cfg['version']
html_title, html_baseurl = project, f'{cfg["doc_host"]}{cfg["doc_baseurl"]}/'
copyright, language = cfg['copyright'], 'en'
extensions = ['myst_nb']

html_scaled_image_link = False
smartquotes = False    # 'l2' is a string
nb_execution_mode = 'off'
nb_render_markdown_format = 'myst'
nb_mime_priority_overrides = [('html', 'text/html', 5)]
myst_enable_extensions = ['dollarmath', 'attrs_block', 'colon_fence']
myst_heading_anchors = 3
myst_dmath_double_inline = True
suppress_warnings = ['myst.header', 'mystnb.unknown_mime_type']
python_display_short_literal_types = True
add_module_names = False
toc_object_entries_show_parents = 'hide'

html_theme = 'sphinx_book_theme'
html_context = dict(default_mode='auto', topnav=front.NAV, description=cfg['description'])
templates_path = ['_templates']
html_sidebars = {'**': ['home.html', 'icon-links.html', 'search-button-field.html', 'sbt-sidebar-nav.html']}
html_static_path = ['_static']
html_css_files = ['site.css']
html_js_files = [('site.js', dict(priority=300, defer='defer'))]
html_favicon = '_static/favicon.svg'
html_math_renderer = 'temml'
html_copy_source = html_show_sourcelink = html_show_copyright = False
html_last_updated_fmt = None
html_theme_options = dict(
    article_header_start=['toggle-primary-sidebar.html', 'topnav.html'],
    repository_url=cfg['git_url'], repository_branch=cfg['branch'], path_to_docs='nbs', use_repository_button=True,
    use_download_button=False, use_fullscreen_button=False, show_toc_level=2, navigation_with_keys=False,
    home_page_in_toc=True, navbar_persistent=[],
    pygments_light_style='a11y-high-contrast-light', pygments_dark_style='a11y-high-contrast-dark')


def visit(tag):
    "LaTeX as text, which temml turns into MathML on the page (docutils' own converter sets \\tfrac12 as 12)."
    def visit_math(writer, node):
        writer.body.append(f'<{tag} class="tex">{escape(node.astext())}</{tag}>')
        raise SkipNode
    return visit_math, None


def with_terms(body, place):
    "The page's text with the first use of each term as a link to the glossary at `place`. Formulas and labels stay as they are."
    kept = []
    def keep(m):
        kept.append(m[0])
        return f'<!--kept {len(kept) - 1}-->'
    hidden = re.sub(r'<(span|div|p) class="(?:tex|exported|badges|written|title)".*?</\1>|<dl class="py .*?</dl>', keep, body, flags=re.S)
    marked = mark_terms(hidden).replace('href="#term-', f'href="{place}#term-')
    return re.sub(r'<!--kept (\d+)-->', lambda m: kept[int(m[1])], marked)


def on_page(app, name, template, context, doctree):
    "Which task a page belongs to, formulas' script where there are formulas, and links to the glossary."
    own = {'reports': 'reports overview benchmarks robustness 25_conclusions', 'learn': 'learn glossary', 'test_a_model': 'test_a_model 76_measure'}
    here = next((page for page, names in own.items() if name in names.split()), name if name in dict(front.NAV) else '')
    context['topnav_here'] = here or ('tasks' if name.startswith('api/') else 'learn' if re.match(r'\d\d_', name) else '')
    if not (body := context.get('body')): return
    if 'class="tex"' in body:
        app.add_css_file('temml/Temml-STIX2.css')
        app.add_js_file('temml/temml.min.js', priority=290, defer='defer')
    if name not in ('index', 'glossary', 'search', 'genindex') and not name.startswith('api/'):
        body = with_terms(body, app.builder.get_relative_uri(name, 'glossary'))
    context['metatags'] = context.get('metatags', '') + drawings.dark_colors(body)
    first, *more = body.split('<img ')
    context['body'] = '<img '.join([first, *(f'loading="lazy" {m}' if i else m for i, m in enumerate(more))])


def setup(app):
    app.add_html_math_renderer('temml', inline_renderers=visit('span'), block_renderers=visit('div'))
    app.connect('html-page-context', on_page, priority=900)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
