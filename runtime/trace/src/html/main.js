// Puts the page together.
'use strict';

/** Colours: light or dark as the system is, until the button says otherwise. */
function followScheme(changed) {
  const system = matchMedia('(prefers-color-scheme: dark)'), root = document.documentElement;
  const set = (dark) => { root.dataset.scheme = dark ? 'dark' : 'light'; changed(); };
  system.addEventListener('change', () => set(system.matches));
  element('scheme').addEventListener('click', () => set(root.dataset.scheme !== 'dark'));
  set(system.matches);
}

function fillLegend(trace, palette) {
  const entry = (shape, colour, text) => {
    const [item, swatch] = [document.createElement('span'), document.createElement('i')];
    swatch.className = shape;
    swatch.style.background = colour;
    item.append(swatch, text);
    return item;
  };
  const kinds = new Map(trace.stages.map((stage) => [palette.stage(stage), []]));
  for (const stage of trace.stages) {
    const names = kinds.get(palette.stage(stage)), name = stage.role === 'transfer' ? 'transfer' : stage.kind;
    if (!names.includes(name)) names.push(name);
  }
  element('legend').replaceChildren(
    ...[...kinds].map(([colour, names]) => entry('', colour, names.join(', '))),
    ...trace.causes.map((cause) => entry('half', palette.bubble(cause), BUBBLE_TEXT[cause])),
    entry('thin', palette.get('--path'), 'critical path'),
  );
}

function fillDigest(trace) {
  const lines = trace.digest.flatMap((line) => {
    const head = document.createElement('b');
    head.textContent = line.slice(0, 7);
    return [head, line.slice(7), '\n'];
  });
  if (trace.dropped) lines.push(`        ${trace.dropped.toLocaleString('en')} older tasks were not kept`);
  element('digest').replaceChildren(...lines);
}

function main() {
  const trace = decode(JSON.parse(element('data').textContent));
  const palette = new Palette();
  let frame = 0, later = 0;
  const draw = () => {
    frame = 0;
    chart.draw();
    overview.draw();
    describe();
  };
  const changed = () => {
    frame ||= requestAnimationFrame(draw);
    clearTimeout(later);
    later = setTimeout(fillTables, 120);
  };
  const view = new View(trace, changed);
  const chart = new Chart(trace, view, palette, element('chart'));
  const overview = new Overview(trace, view, palette, element('map'));
  const lanes = new SortedTable(element('lanes'), laneColumns(trace), 1);
  const stages = new SortedTable(element('stages'), stageColumns(palette), 2);
  const fillTables = () => {
    lanes.show(laneRows(trace, view));
    stages.show(stageRows(trace, view));
  };
  const describe = () => {
    const { steps } = trace, root = document.documentElement;
    if (document.activeElement !== element('step')) element('step').value = steps.n ? steps.number[view.step] : '';
    element('steps').textContent = steps.n ? `of ${steps.number[0]}–${steps.number[steps.n - 1]}` : '';
    element('range').textContent = `${time(view.length)} in view`;
    // For whoever looks at the page from outside.
    Object.assign(root.dataset, { from: view.from, to: view.to, bars: chart.bars });
  };

  fillDigest(trace);
  listen(view, chart.canvas, (x) => chart.at(x), (x, y) => chart.pick(x, y));
  listenMap(view, overview.canvas);
  for (const [id, what] of [['show-path', 'path'], ['show-arrows', 'arrows'], ['show-bubbles', 'bubbles']]) {
    element(id).addEventListener('change', (event) => { chart.show[what] = event.target.checked; changed(); });
  }
  const hover = (event) => {
    chart.hovered = event.type === 'pointerleave' || event.buttons ? null : chart.pick(event.offsetX, event.offsetY);
    showTip(element('tip'), trace, chart.hovered, event.offsetX, event.offsetY);
    frame ||= requestAnimationFrame(draw);
  };
  for (const kind of ['pointermove', 'pointerleave', 'pointerdown']) chart.canvas.addEventListener(kind, hover);
  new ResizeObserver(() => { overview.forget(); changed(); }).observe(element('stage-area'));
  followScheme(() => { palette.forget(); overview.forget(); fillLegend(trace, palette); changed(); });

  // A usual step says more than the run as a whole; of fewer than three none is usual.
  if (trace.steps.n > 2) view.showStep(view.typicalStep); else view.all();
  fillTables();
  draw();
  document.documentElement.dataset.ready = 'yes';
}

main();
