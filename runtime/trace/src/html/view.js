// Which piece of time is on screen, and how wheel, drag, keys and buttons change it.
'use strict';

/** Never closer than this many nanoseconds a screen. */
const CLOSEST = 200;

class View {
  constructor(trace, changed) {
    this.trace = trace;
    this.changed = changed;
    this.margin = (trace.to - trace.from) * 0.01 + 1;
    this.from = trace.from - this.margin;
    this.to = trace.to + this.margin;
  }
  get length() { return this.to - this.from; }

  show(from, to) {
    const [low, high] = [this.trace.from - this.margin, this.trace.to + this.margin];
    const length = Math.min(Math.max(to - from, CLOSEST), high - low);
    const middle = (from + to) / 2;
    this.from = Math.min(Math.max(middle - length / 2, low), high - length);
    this.to = this.from + length;
    this.changed();
  }
  all() { this.show(this.trace.from - this.margin, this.trace.to + this.margin); }
  zoom(factor, at = (this.from + this.to) / 2) {
    // Bounded first, so that a wheel that cannot zoom does not wander.
    const length = Math.min(Math.max(this.length * factor, CLOSEST), this.trace.to - this.trace.from + 2 * this.margin);
    const share = (at - this.from) / this.length;
    this.show(at - length * share, at + length * (1 - share));
  }
  move(share) { this.show(this.from + this.length * share, this.to + this.length * share); }

  /** The step in the middle of the screen, as an index. */
  get step() {
    const { steps } = this.trace, middle = (this.from + this.to) / 2;
    return Math.max(0, firstIndex(steps.n, (i) => steps.start[i] > middle) - 1);
  }
  /** A step as long as most are, from the middle of the run. */
  get typicalStep() {
    const { steps, to } = this.trace;
    const took = steps.start.map((start, i) => (steps.start[i + 1] ?? to) - start);
    const median = [...took].sort((a, b) => a - b)[steps.n >> 1];
    const usual = took.map((ns, i) => i).filter((i) => Math.abs(took[i] - median) <= 0.1 * median);
    return usual[usual.length >> 1] ?? steps.n >> 1;
  }
  showStep(index) {
    const { steps, to } = this.trace;
    if (!steps.n) return;
    const i = Math.min(Math.max(index, 0), steps.n - 1);
    const [from, end] = [steps.start[i], i + 1 < steps.n ? steps.start[i + 1] : to];
    const margin = (end - from) * 0.04;
    this.show(from - margin, end + margin);
  }
}

function element(id) { return document.getElementById(id); }

/** `at`: time under a pixel of the chart. `pick`: the span there. */
function listen(view, chart, at, pick) {
  chart.addEventListener('wheel', (event) => {
    event.preventDefault();
    const sideways = event.shiftKey ? event.deltaY || event.deltaX : event.deltaX;
    if (Math.abs(sideways) > Math.abs(event.shiftKey ? 0 : event.deltaY)) view.move(Math.sign(sideways) * 0.1);
    else view.zoom(Math.exp(Math.max(-200, Math.min(200, event.deltaY)) * 0.0025), at(event.offsetX));
  }, { passive: false });
  let grip = null;
  chart.addEventListener('pointerdown', (event) => {
    grip = { x: event.offsetX, from: view.from, to: view.to, scale: at(1) - at(0) };
    chart.setPointerCapture(event.pointerId);
    chart.classList.add('dragging');
    chart.focus({ preventScroll: true });
  });
  chart.addEventListener('pointermove', (event) => {
    if (!grip) return;
    const moved = (event.offsetX - grip.x) * grip.scale;
    view.show(grip.from - moved, grip.to - moved);
  });
  for (const end of ['pointerup', 'pointercancel']) {
    chart.addEventListener(end, () => { grip = null; chart.classList.remove('dragging'); });
  }
  chart.addEventListener('dblclick', (event) => {
    const span = pick(event.offsetX, event.offsetY);
    if (span) view.show(span.start - (span.end - span.start) * 0.5, span.end + (span.end - span.start) * 0.5);
  });
  listenKeys(view);
  const press = (id, act) => element(id).addEventListener('click', act);
  press('previous', () => view.showStep(view.step - 1));
  press('next', () => view.showStep(view.step + 1));
  press('all', () => view.all());
  press('closer', () => view.zoom(0.5));
  press('wider', () => view.zoom(2));
  element('step').addEventListener('change', (event) => {
    const wanted = Number(event.target.value), { steps } = view.trace;
    if (Number.isFinite(wanted)) view.showStep(firstIndex(steps.n, (i) => steps.number[i] >= wanted));
  });
}

function listenKeys(view) {
  const keys = {
    ArrowLeft: () => view.move(-0.2), ArrowRight: () => view.move(0.2), a: () => view.move(-0.2), d: () => view.move(0.2),
    '+': () => view.zoom(0.6), '=': () => view.zoom(0.6), '-': () => view.zoom(1 / 0.6), w: () => view.zoom(0.6), s: () => view.zoom(1 / 0.6),
    '[': () => view.showStep(view.step - 1), ']': () => view.showStep(view.step + 1), 0: () => view.all(),
  };
  document.addEventListener('keydown', (event) => {
    const typing = event.target instanceof HTMLInputElement && event.target.type !== 'checkbox';
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(keys, event.key)) return;
    event.preventDefault();
    keys[event.key]();
  });
}

/** The strip that shows the whole trace: a click or drag moves the view there. */
function listenMap(view, map) {
  let dragging = false;
  const go = (event) => {
    const { from, to } = view.trace;
    const middle = from + (to - from) * event.offsetX / map.clientWidth;
    view.show(middle - view.length / 2, middle + view.length / 2);
  };
  map.addEventListener('pointerdown', (event) => { dragging = true; map.setPointerCapture(event.pointerId); go(event); });
  map.addEventListener('pointermove', (event) => { if (dragging) go(event); });
  for (const end of ['pointerup', 'pointercancel']) map.addEventListener(end, () => { dragging = false; });
}
