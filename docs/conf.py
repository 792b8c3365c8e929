"""Sphinx: stored notebooks, formulas as MathML by temml, nothing from a network."""
import configparser
from html import escape
from pathlib import Path

from docutils.nodes import SkipNode

cfg = configparser.ConfigParser()
cfg.read(Path(__file__).parent.parent / 'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']

project, author, release = cfg['title'], cfg['author'], cfg['version']
html_title, html_baseurl = project, f'{cfg["doc_host"]}{cfg["doc_baseurl"]}/'
copyright, language = cfg['copyright'], 'en'
extensions = ['myst_nb']

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
html_context = dict(default_mode='auto')
html_static_path = ['_static']
html_css_files = ['temml/Temml-STIX2.css', 'site.css']
html_js_files = [('site.js', dict(priority=300)), ('temml/temml.min.js', dict(priority=310, defer='defer'))]
html_favicon = '_static/favicon.svg'
html_math_renderer = 'temml'
html_copy_source = html_show_sourcelink = html_show_copyright = False
html_last_updated_fmt = None
html_theme_options = dict(
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


def setup(app):
    app.add_html_math_renderer('temml', inline_renderers=visit('span'), block_renderers=visit('div'))
    return dict(parallel_read_safe=True, parallel_write_safe=True)
