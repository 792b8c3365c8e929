"""Figures that notebooks store as SVG: cut into panels that stand below one another on a phone, in colours that follow the page's theme."""
import colorsys
import json
import re
import xml.etree.ElementTree as ET
from functools import cache
from html import escape
from pathlib import Path

import captions

PX = 4 / 3           # pixels in a point
KEEP = .8            # panels shrink to this before the last one moves to the next line
PHONE, COLUMN, LEAST = 360, 940, 9.2      # pixels that a phone and a wide page have for a figure; the smallest text on a phone
TABLES = Path(__file__).parent.parent / 'nrf_repro/report/templates/tables.css'


def svg_of(output):
    "The SVG of an output, or ''."
    text = output.get('data', {}).get('image/svg+xml', '')
    return text if isinstance(text, str) else ''.join(text)


def tree(svg):
    "The document without namespaces, and its layout: rows of parts, as `nrf_repro.report.figures` stores them."
    root = ET.fromstring(re.sub(r'<!DOCTYPE[^>]*>', '', svg))
    for e in root.iter():
        e.tag = e.tag.rpartition('}')[2]
        for name in [n for n in e.attrib if '}' in n]: e.set(name.rpartition('}')[2], e.attrib.pop(name))
    told = root.find('metadata')
    layout = json.loads(told.text) if told is not None and (told.text or '').strip().startswith('[') else []
    for e in root.findall('metadata'): root.remove(e)
    return root, layout


def without_defs(root):
    "Take markers, clips and hatches out of the tree: the first part gets them all, and the others refer to them."
    found = {}
    for parent in [*root.iter()]:
        for defs in parent.findall('defs'):
            found |= {e.get('id'): e for e in defs if e.get('id')}
            parent.remove(defs)
    return list(found.values())


def only(element, names, others):
    "A copy with nothing but the elements of these names; None where there is none. `others`: names of other parts."
    if element.get('id') in names: return whole(element, others)
    inside = [copy for e in element if (copy := only(e, names, others)) is not None]
    if not inside: return None
    copy = ET.Element(element.tag, dict(element.attrib))
    copy.extend(inside)
    return copy


def whole(element, others):
    "A copy without the elements of other parts."
    if element.get('id') in others: return None
    copy = ET.Element(element.tag, dict(element.attrib))
    copy.text, copy.tail = element.text, element.tail
    copy.extend(kept for e in element if (kept := whole(e, others)) is not None)
    return copy


# Colours

@cache
def known():
    "Colours of the reports in the light -> in the dark."
    light, dark, *_ = re.findall(r'--nrf-bg:.*?\}', TABLES.read_text(encoding='utf-8'), re.S)
    light, dark = (dict(re.findall(r'--nrf-([\w-]+): (#[0-9a-f]{6})', block)) for block in (light, dark))
    return {color: dark[name] for name, color in light.items()} | {'#000000': dark['ink']}


def contrast(color, other='#14181e'):
    def light(c):
        parts = [int(c[i:i + 2], 16) / 255 for i in (1, 3, 5)]
        return sum(w * (p / 12.92 if p <= .04 else ((p + .055) / 1.055) ** 2.4) for w, p in zip((.2126, .7152, .0722), parts))
    a, b = sorted((light(color), light(other)))
    return (b + .05) / (a + .05)


def in_the_dark(color):
    "Greys are turned round; colours get lighter until they are as clear as text must be."
    if color in known(): return known()[color]
    hue, lightness, saturation = colorsys.rgb_to_hls(*(int(color[i:i + 2], 16) / 255 for i in (1, 3, 5)))
    def text(l): return '#' + ''.join(f'{round(255 * v):02x}' for v in colorsys.hls_to_rgb(hue, l, saturation))
    if saturation < .15: return text(.92 - .8 * lightness)
    while contrast(text(lightness)) < 4.5: lightness += .02
    return text(lightness)


def theme(style):
    "A style with colours as variables."
    def color(m):
        if m[2] == '#ffffff': return f'{m[1]}: var(--pst-color-background)'
        return f'{m[1]}: var(--c{m[2][1:]}, {m[2]})'
    return re.sub(r'(fill|stroke|stop-color): (#[0-9a-f]{6})', color, style)


def flexible(style):
    "A style with sizes of text that a phone can raise, in the page's font."
    style = re.sub(r'font-size: ([\d.]+)px', r'font-size: max(\1px, var(--least, 0px))', style)
    return re.sub(r"font-family: 'DejaVu Sans', sans-serif;? ?", '', style)


def dark_colors(html):
    "A style sheet with the dark values of the colours in a page; '' for a page without drawings."
    found = re.findall(r'var\(--c([0-9a-f]{6})', html)
    if not found: return ''
    return '<style>html[data-theme=dark] { ' + ' '.join(f'--c{c}: {in_the_dark("#" + c)};' for c in dict.fromkeys(['000000', *found])) + ' }</style>'


def recolored(element, prefix, keep=False):
    "The tree with theme colours, except in pictures, colour maps and the text on them, and with unique ids."
    own = re.match('own-|QuadMesh', element.get('id', ''))
    keep = keep or bool(own)
    if own: element.set('fill', '#000000')     # what SVG says of elements without a colour
    for name, value in [*element.attrib.items()]:
        value = re.sub(r'url\(#', f'url(#{prefix}', ' '.join(value.split()))
        if name == 'id': value = f'{prefix}{value}'
        if name == 'href' and value.startswith('#'): value = f'#{prefix}{value[1:]}'
        if name == 'style': value = flexible(value if keep else theme(value))
        element.set(name, value)
    for e in element: recolored(e, prefix, keep)


# The figure

def markup(element, used=None):
    "The element as HTML. `used`: the ids that may be referred to; others go."
    for e in element.iter():
        if re.search('alone-', e.get('id', '')): e.attrib.pop('display', None)     # needed, as a panel stands alone
        if used is not None and e.get('id') not in used: e.attrib.pop('id', None)
    return re.sub(r'>\s+<', '><', ET.tostring(element, encoding='unicode')).strip()


def tag(element, box, defs=(), entry=False, keep=KEEP):
    "An <svg> of a part of the figure. `entry`: of a legend."
    x, y, w, h = box
    room = .3 * w * max(0, LEAST / 12 * w * PX / PHONE - 1)      # for text of 12 pixels that grows on a phone
    if not entry: x, w = x - room, w + 2 * room
    width = w * PX
    least = LEAST / PX / min(1, PHONE / width)
    look = f'width: {width:.0f}px' if entry else f'flex: {width:.0f} 1 {keep * width:.0f}px; --width: {width:.0f}px; --phone: {least:.1f}px; --wide: {LEAST / PX / keep:.1f}px'
    shared = f'<defs>{"".join(map(markup, defs))}</defs>' if defs else ''
    return f'<svg aria-hidden="true" viewBox="{x:g} {y:g} {w:g} {h:g}" style="{look}">{shared}{markup(element, ())}</svg>'


def parts_of(layout):
    "All parts that are drawn, in one list."
    for part in (part for row in layout for part in row):
        if 'names' in part: yield part
        yield from part.get('key', ())


def panels(svg, alt, prefix):
    "The figure as HTML: a row of panels, of entries of a legend, or a line of text each."
    root, layout = tree(svg)
    defs = without_defs(root)
    for e in (root, *defs): recolored(e, prefix)
    if not layout:
        box = [float(v) for v in root.get('viewBox').split()]
        root.tag, root.attrib = 'g', {}
        return wrap(tag(root, box, defs), alt)
    every = {prefix + name for part in parts_of(layout) for name in part['names']}
    def draw(part, small=False, keep=KEEP):
        nonlocal defs
        names = {prefix + name for name in part['names']}
        group = ET.Element('g')
        group.extend(e for child in root if (e := only(child, names, every - names)) is not None)
        given, defs = defs, ()
        return tag(group, part['box'], given, small, keep)
    def html(part, keep):
        if 'text' in part: return f'<p class="title">{escape(captions.plain_text(part["text"], lines=True))}</p>'
        if 'key' in part: return f'<div class="key">{"".join(draw(p, True) for p in part["key"])}</div>'
        return draw(part, keep=keep)
    def line(row):
        keep = COLUMN / PX / sum([part['box'][2] for part in row if 'box' in part], 1)      # what lets a long row stay one
        return f'<div class="parts">{"".join(html(part, max(.75, min(KEEP, keep))) for part in row)}</div>'
    return wrap(''.join(map(line, layout)), alt)


def wrap(inner, alt): return f'<div class="panels" role="img" aria-label="{escape(alt)}">{inner}</div>'


def figure(svg, alt, prefix, caption=''):
    "Markdown of the figure with its caption."
    inner = panels(svg, alt, prefix)
    if not caption: return f'<figure class="drawn">{inner}</figure>'
    return f'<figure class="drawn captioned">{inner}<figcaption>\n\n{caption}\n\n</figcaption></figure>'
