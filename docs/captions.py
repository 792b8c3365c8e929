"""Figures of chapters: captions and alternative texts from the paragraph below a figure, and where a chapter defines a term."""
import base64
import io
import re

from PIL import Image

WIDE = 900          # pixels from which a picture is shown smaller than it is, so that it is sharp on a dense screen
DENSITY = 1.35
SYMBOLS = {r'\ell_2': 'ℓ2', r'\ell_\infty': 'ℓ∞', r'\varepsilon': 'eps', r'\epsilon': 'eps', r'\sigma': 'sigma', r'\lambda': 'lambda', r'\gamma': 'gamma',
           r'\beta': 'beta', r'\times': '×', r'\le': '≤', r'\ge': '≥', r'\%': '%', r'\,': ' '}


def source_of(cell): return cell['source'] if isinstance(cell['source'], str) else ''.join(cell['source'])


def pictures_of(cell): return [o for o in cell.get('outputs', []) if {'image/png', 'image/svg+xml'} & o.get('data', {}).keys()]


def attach(cells):
    """The cells of a notebook; a code cell with a figure gets `caption`, the paragraph in italics right below it, or else `said`.

    That paragraph leaves its own cell. Of several figures in a cell the last one gets the caption.
    """
    made = [dict(c) for c in cells]
    for i, cell in enumerate(made):
        if cell['cell_type'] != 'code' or not pictures_of(cell): continue
        after = next((c for c in made[i + 1:i + 5] if c['cell_type'] == 'markdown'), None)
        if after is None: continue
        paragraph, _, rest = source_of(after).lstrip().partition('\n\n')
        if made[i + 1] is after and re.match(r'\*[^*\s]', paragraph):
            cell['caption'], after['source'] = paragraph, rest
        elif not re.match(r'#|>|\||[-*] |\d+\. ', paragraph): cell['said'] = paragraph
    return list(split(made))


def split(cells):
    "A cell of several figures with a caption as one cell for each: a caption belongs to one figure."
    for cell in cells:
        several = pictures_of(cell) if cell.get('caption') else []
        if len(several) < 2: yield cell; continue
        yield cell | dict(outputs=[o for o in cell['outputs'] if o is not several[-1]], caption='', said=cell['caption'])
        hidden = '#| echo: false\n' + re.sub(r'^\s*#\|.*\n?', '', source_of(cell), flags=re.M)
        yield cell | dict(outputs=[several[-1]], source=hidden, id=cell.get('id', '') + 'b')


def alternative(caption, said, heading):
    "The alternative text of a figure."
    return shortened(plain_text(caption or said)) or f'Figure in the section “{heading}”'


def options(output, caption, said, heading):
    "What MyST-NB is told of a picture: alternative text, classes, width, and the caption."
    data = output['data']['image/png']
    picture = Image.open(io.BytesIO(base64.b64decode(data if isinstance(data, str) else ''.join(data))))
    image = dict(alt=alternative(caption, said, heading), classes='photo' if density(picture) == 2 else kind(picture))
    image['width'] = f'{picture.width / density(picture):.0f}px'
    return dict(image=image, figure=dict(caption=caption, classes='captioned')) if caption else dict(image=image)


def density(picture):
    "Pixels of the picture for one of the page: two where it was stored for dense screens."
    return 2 if picture.info.get('dpi', (0,))[0] > 180 else DENSITY if picture.width > WIDE else 1


def lighter(output):
    "The output with its picture in 128 colours, a third of the bytes; as it was where that is no smaller."
    data = output.get('data', {}).get('image/png')
    if not data: return output
    raw, small = base64.b64decode(data if isinstance(data, str) else ''.join(data)), io.BytesIO()
    picture = Image.open(io.BytesIO(raw))
    flat = Image.alpha_composite(Image.new('RGBA', picture.size, 'white'), picture.convert('RGBA')).convert('RGB')
    flat.quantize(128, dither=Image.Dither.NONE).save(small, 'PNG', optimize=True, **({'dpi': picture.info['dpi']} if 'dpi' in picture.info else {}))
    if len(small.getvalue()) >= len(raw): return output
    return output | dict(data=output['data'] | {'image/png': base64.b64encode(small.getvalue()).decode()})


def kind(picture):
    "'plot' if most of it is white: in the dark its colours are turned. 'photo' for images, which keep their colours."
    small = picture.convert('RGBA').resize((120, 60), Image.Resampling.BILINEAR)
    white = Image.new('RGBA', small.size, 'white')
    pixels = list(Image.alpha_composite(white, small).convert('RGB').get_flattened_data() if hasattr(small, 'get_flattened_data')
                  else Image.alpha_composite(white, small).convert('RGB').getdata())
    bright = sum(min(p) > 225 for p in pixels) / len(pixels)
    return 'plot' if bright > .6 else 'photo'


def plain_text(text, lines=False):
    "Markdown and formulas as plain text, for an alternative text. `lines`: with its lines."
    text = re.sub(r'!?\[([^\]]*)\]\([^)]*\)', r'\1', text)
    text = re.sub(r'\{[\w:]+\}`([^`<]+?)(?: <[^`]*)?`', r'\1', text)
    def formula(m):
        inner = m[1]
        for code, sign in SYMBOLS.items(): inner = inner.replace(code, sign)
        return re.sub(r'\\[a-zA-Z]+|[{}\\]', '', inner).replace('_', ' ').strip()
    text = re.sub(r'\$([^$]+)\$', formula, text)
    return ('\n' if lines else ' ').join(' '.join(line.split()) for line in re.sub(r'[*`]', '', text).split('\n') if line.strip())


def shortened(text, most=300):
    "The first sentences, at most so many characters."
    kept = ''
    for sentence in re.split(r'(?<=[.;])\s', text):
        if kept and len(kept) + len(sentence) > most: break
        kept = f'{kept} {sentence}'.strip()
    return kept if len(kept) <= most else kept[:most].rsplit(' ', 1)[0] + ' …'


def defined(cells, chapter):
    "The cells, with an entry of the index before the section in which this chapter (folder/name) defines a term: the search shows it first."
    from nrf_repro.report.html import glossary
    for term in (t for t in glossary().values() if t.get('chapter') == chapter):
        names = dict.fromkeys([term['name'], *([term['long']] if 'long' in term else []), *(m for m in term.get('match', []) if m.islower())])
        at = place(cells, names)
        cells.insert(at, dict(cell_type='markdown', id='term', metadata={}, source=f'```{{index}} {", ".join(f"! {name}" for name in names)}\n```'))
    return cells


def place(cells, names):
    "Before the heading that names the term, else before the paragraph that has it in bold or italics; else below the title."
    words = '|'.join(re.escape(n) for n in names)
    for pattern in (rf'\A##+ [^\n]*(?<!\w)(?:{words})(?!\w)', rf'\*(?:{words})\*', ''):
        for i, cell in enumerate(cells):       # an anchor before raw HTML would be lost
            if i and cell['cell_type'] == 'markdown' and not cell['source'].startswith('<') and re.search(pattern, cell['source'], re.I): return i
    return len(cells)
