// The page works without this script; with it the theme can be chosen, and printing opens what is folded.
(() => {
  const root = document.documentElement, button = document.getElementById('theme'), key = 'nrf-theme';
  const remembered = () => { try { return localStorage.getItem(key); } catch { return null; } };
  const remember = theme => { try { localStorage.setItem(key, theme); } catch { /* a private window: forgotten on reload */ } };
  const system = matchMedia('(prefers-color-scheme: dark)');
  const dark = () => (root.dataset.theme || (system.matches ? 'dark' : 'light')) === 'dark';
  const show = () => button.setAttribute('aria-pressed', String(dark()));
  const chosen = remembered();
  if (chosen === 'dark' || chosen === 'light') root.dataset.theme = chosen;
  button.hidden = false;
  button.addEventListener('click', () => { root.dataset.theme = dark() ? 'light' : 'dark'; remember(root.dataset.theme); show(); });
  system.addEventListener('change', show);
  show();

  let folded = [], screen_theme;
  addEventListener('beforeprint', () => {
    folded = [...document.querySelectorAll('details:not([open])')];
    folded.forEach(d => { d.open = true; });
    screen_theme = root.dataset.theme;
    root.dataset.theme = 'light';
  });
  addEventListener('afterprint', () => {
    folded.forEach(d => { d.open = false; });
    if (screen_theme) root.dataset.theme = screen_theme; else delete root.dataset.theme;
  });

  // the rows of one part: the lines that its link names, out of the file that holds all
  const all_rows = async link => {
    const bytes = Uint8Array.from(atob(link.href.split(',')[1]), c => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream();
    return new Response(link.download.endsWith('.gz') ? stream.pipeThrough(new DecompressionStream('gzip')) : stream).text();
  };
  document.addEventListener('click', async event => {
    const asked = event.target.closest('a[data-lines]');
    if (!asked) return;
    event.preventDefault();
    const lines = (await all_rows(document.querySelector('a[data-all-rows]'))).split('\n'), link = document.createElement('a');
    const parts = asked.dataset.lines.split(',').flatMap(r => { const [a, b] = r.split('-').map(Number); return lines.slice(a, (b ?? a) + 1); });
    link.href = URL.createObjectURL(new Blob([parts.map(line => line + '\n').join('')], {type: 'application/x-ndjson'}));
    link.download = `${asked.closest('article')?.getAttribute('aria-labelledby') ?? asked.closest('tbody').id}.jsonl`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });

  // what is wider than its box says so; on a narrow page the contents begin folded
  const measure = () => document.querySelectorAll('.nrf-scroll').forEach(box => box.toggleAttribute('data-wide', box.scrollWidth > box.clientWidth + 1));
  const contents = document.querySelector('.contents details');
  if (contents && matchMedia('(max-width: 68rem)').matches) contents.open = false;
  addEventListener('resize', measure);
  measure();
})();
