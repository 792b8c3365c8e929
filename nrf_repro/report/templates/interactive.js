// What can be said was worked out beforehand, for every place of the sliders; this script only puts it where it belongs.
(() => {
  const all = (el, query) => [...el.querySelectorAll(query)];
  const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const set = (el, values) => { for (const [name, value] of Object.entries(values)) el.setAttribute(name, value); };

  // A picture becomes a canvas of the same size and class, which can be painted anew.
  const canvas_for = (img, [, h, w]) => {
    const canvas = document.createElement('canvas');
    Object.assign(canvas, { width: w, height: h, className: img.className });
    canvas.setAttribute('role', 'img');
    img.replaceWith(canvas);
    return canvas;
  };
  const paint = (canvas, [c, h, w], label, value) => {
    const n = h * w, context = canvas.getContext('2d'), im = context.createImageData(w, h);
    for (let j = 0; j < n; j++) for (let k = 0; k < 4; k++) im.data[4 * j + k] = k === 3 ? 255 : value((k % c) * n + j);
    context.putImageData(im, 0, 0);
    canvas.setAttribute('aria-label', label);
  };

  const eps_figure = (root, { shape, unit, magnify, eps, items }) => {
    const size = shape.reduce((a, b) => a * b), slider = root.querySelector('input[type="range"]'), radios = all(root, 'input[type="radio"]');
    const nets = all(root, '.nrf-net').map(el => ({
      el, adv: canvas_for(el.querySelector('.nrf-adv'), shape), change: canvas_for(el.querySelector('.nrf-change'), shape), rows: all(el, 'tbody tr') }));
    const stored = items.map(item => ({ pixels: bytes(item.pixels), delta: new Int8Array(bytes(item.delta).buffer) }));
    const show = () => {
      const i = radios.findIndex(r => r.checked), k = Number(slider.value), item = items[i], view = item.views[k], { pixels, delta } = stored[i];
      root.querySelector('.nrf-value').textContent = eps[k];
      slider.setAttribute('aria-valuetext', `eps ${eps[k]}`);
      root.querySelector('.nrf-say').textContent = view.say;
      nets.forEach((net, m) => {
        const v = view.nets[m], at = (m * (eps.length - 1) + k - 1) * size, moved = j => k ? 255 * unit * delta[at + j] : 0;
        paint(net.adv, shape, v.adv, j => pixels[j] + moved(j));
        paint(net.change, shape, v.change, j => 127.5 + magnify * moved(j));
        const state = net.el.querySelector('.nrf-state');
        state.textContent = v.state;
        state.className = `nrf-state ${v.wrong ? 'nrf-wrong' : 'nrf-right'}`;
        net.el.querySelector('.nrf-first').textContent = v.first;
        net.rows.forEach((row, c) => {
          row.className = c === item.truth ? 'nrf-truth' : '';
          row.querySelector('th').textContent = item.classes[c];
          row.querySelector('.nrf-bar').style.width = `${v.p[c]}%`;
          row.querySelector('.nrf-number').textContent = v.p[c];
        });
        set(net.el.querySelector('.nrf-steps'), { 'aria-label': v.course });
        set(net.el.querySelector('.nrf-true'), { points: v.true });
        set(net.el.querySelector('.nrf-other'), { points: v.other });
        set(net.el.querySelector('.nrf-mark'), { d: v.mark });
      });
    };
    root.addEventListener('input', show);
    return show;
  };

  const epoch_figure = (root, courses, { left, right, width, top, bottom }) => {
    const slider = root.querySelector('input[type="range"]'), select = root.querySelector('select'), value = root.querySelector('.nrf-value');
    const course = () => courses[Number(select.value)];
    const show = () => {
      const c = course(), k = Number(slider.value);
      value.textContent = c.epochs[k];
      slider.setAttribute('aria-valuetext', `epoch ${c.epochs[k]}`);
      root.querySelector('.nrf-say').textContent = c.say[k];
      const part = root.querySelector(`[data-course="${select.value}"]`);
      part.querySelector('.nrf-at').textContent = c.epochs[k];
      all(part, '.nrf-cursor').forEach(el => set(el, { d: `M${c.x[k]} ${top}V${bottom}` }));
      all(part, '.nrf-panel').forEach((svg, m) => all(svg, '.nrf-now').forEach((el, n) => {
        const y = c.panels[m].lines[n].y[k];
        set(el, { cx: c.x[k], cy: y ?? 0, visibility: y === null ? 'hidden' : 'visible' });
      }));
      all(part, 'tbody tr').forEach((row, n) => all(row, 'td').forEach((cell, m) => {
        [cell.querySelector('b').textContent, cell.querySelector('small').textContent] = c.rows[n].cells[m][k];
      }));
    };
    const choose = () => {
      all(root, '.nrf-course').forEach(el => { el.hidden = el.dataset.course !== select.value; });
      const { epochs } = course(), ends = all(root, '.nrf-ends span');
      slider.max = epochs.length - 1;
      slider.value = slider.max;
      [ends[0].textContent, ends[1].textContent] = [epochs[0], epochs.at(-1)];
      show();
    };
    const nearest = (svg, event) => {   // the epoch under the pointer
      const box = svg.getBoundingClientRect(), at = (event.clientX - box.left) / box.width * width, { x } = course();
      slider.value = x.reduce((best, xi, i) => Math.abs(xi - at) < Math.abs(x[best] - at) ? i : best, 0);
      show();
    };
    slider.addEventListener('input', show);
    select.addEventListener('change', choose);
    all(root, '.nrf-panel').forEach(svg => {
      svg.addEventListener('pointerdown', e => nearest(svg, e));
      svg.addEventListener('pointermove', e => { if (e.buttons & 1) nearest(svg, e); });
    });
    return choose;
  };

  for (const root of all(document, '.nrf-interactive:not([data-ready])')) {
    const { images, courses, box } = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
    root.dataset.ready = '';
    if (images) eps_figure(root.querySelector('.nrf-live-eps'), images)();
    if (courses.length) epoch_figure(root.querySelector('.nrf-live-epochs'), courses, box)();
    all(root, '.nrf-controls').forEach(el => { el.hidden = false; });
  }
})();
