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
    e.classList.toggle('wide', e.firstChild.getBoundingClientRect().width > e.parentElement.clientWidth);
  for (const e of document.querySelectorAll('.tex, div.cell_output .output, div.cell_output pre, div.highlight pre'))
    if (e.scrollWidth > e.clientWidth && !e.hasAttribute('tabindex')) e.tabIndex = 0;
}

document.addEventListener('DOMContentLoaded', () => { setFormulas(); letScroll(); });
window.addEventListener('resize', letScroll);
