// Summaries of search results are fetched, which browsers refuse for pages on a disk: there titles have to do.
DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = location.protocol !== 'file:';

function setFormulas() {
  for (const e of document.querySelectorAll('.tex:not(.set)')) {
    temml.render(e.textContent, e, { displayMode: e.tagName === 'DIV', throwOnError: false });
    e.classList.add('set');
  }
}

// What is wider than the page scrolls by itself, also by the keyboard.
function letScroll() {
  for (const e of document.querySelectorAll('span.tex'))
    e.classList.toggle('wide', e.firstChild.getBoundingClientRect().width > e.closest('p, li, td, th, dd, figcaption, h1, h2, h3, div').clientWidth);
  for (const e of document.querySelectorAll('.tex, div.cell_output .output, div.cell_output:has(> img), div.cell_output figure, div.cell_output pre, div.highlight pre, .pst-scrollable-table-container'))
    if (e.scrollWidth > e.clientWidth && !e.hasAttribute('tabindex')) e.tabIndex = 0;
}

// What can be read on a button or a fold is its name; the theme's labels say less.
function nameByWords() {
  for (const e of document.querySelectorAll('details.hide > summary[aria-label], .search-button-field[aria-label]')) e.removeAttribute('aria-label');
}

// The page's contents, opened over the page, go when one was chosen.
function closeContents() {
  document.getElementById('pst-secondary-sidebar-modal')?.addEventListener('click', e => e.target.closest('a[href^="#"]') && e.currentTarget.close());
}

// A search result's summary comes from the article: without the theme's menus, labels and code. From an entry of the index it is the section below it.
function summaries() {
  if (typeof Search === 'undefined') return;
  Search.htmlToText = (html, anchor) => {
    const page = new DOMParser().parseFromString(html, 'text/html'), article = page.querySelector('article.bd-article');
    if (!article) return '';
    for (const e of article.querySelectorAll('.headerlink, script, style, h1, p.badges, p.exported, p.written, div.cell_input, .panels, .visually-hidden')) e.remove();
    let part = anchor && article.querySelector(anchor);
    if (part && !part.textContent.trim()) part = part.nextElementSibling || part.closest('section');
    return (part || article).textContent.replace(/\s+/g, ' ').trim();
  };
}

// A click on the head of a column of the leaderboard sorts by it, and a second click the other way round.
function sortLeaderboard() {
  for (const table of document.querySelectorAll('table.leaderboard')) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector('button').addEventListener('click', () => {
      const down = head.getAttribute('aria-sort') !== 'descending', key = row => row.cells[column].dataset.value;
      const order = (a, b) => isNaN(key(a)) || isNaN(key(b)) ? key(a).localeCompare(key(b)) : key(a) - key(b);
      for (const other of heads) other.removeAttribute('aria-sort');
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => down ? -order(a, b) : order(a, b)));
    }));
  }
}

summaries();
document.addEventListener('DOMContentLoaded', () => { nameByWords(); closeContents(); setFormulas(); letScroll(); sortLeaderboard(); });
window.addEventListener('resize', letScroll);
