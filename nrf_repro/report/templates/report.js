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
})();
