// Draws lanes over time on the chart.
//
// Where a lane has few tasks in view each is a bar; where it has many, a column of pixels shows how much of its time went into
// what. So a frame costs about the same whatever the trace holds.
'use strict';

const LEFT = 132, AXIS = 36, BAR = 32, ROW = 60, CHART_END = 10, COUNTERS = 54;
/** Most bars of a lane, for each pixel of width. */
const DENSEST = 1.5;
/** Most arrows and most pieces of the path in view. */
const MOST_ARROWS = 1200, MOST_RUNS = 4000;

const ROLE_COLOUR = {
  attention: '--attention', ffn: '--ffn', router: '--router', transfer: '--transfer', combine: '--combine',
};
const WORK_COLOUR = ['--attention', '--ffn', '--transfer', '--transfer'];

/** Colours of the scheme in use, read once a change. */
class Palette {
  constructor() { this.known = new Map(); }
  forget() { this.known.clear(); }
  get(name) {
    if (!this.known.has(name)) {
      this.known.set(name, getComputedStyle(document.documentElement).getPropertyValue(name).trim());
    }
    return this.known.get(name);
  }
  stage(stage) { return this.get(ROLE_COLOUR[stage.role] ?? '--plain'); }
  bubble(cause) { return this.get(`--wait-${cause}`); }
}

/** Micro-batches that follow each other get colours far apart: the golden angle. */
function microBatchColour(microBatch) { return `hsl(${(210 + microBatch * 137) % 360} 70% 50%)`; }

/** A canvas sized for the screen's own pixels. */
function surface(canvas, height) {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth;
  canvas.style.height = `${height}px`;
  const [w, h] = [Math.max(1, Math.round(width * ratio)), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
  const context = canvas.getContext('2d');
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return [context, width];
}

/** Busy time of a lane from one moment to another, by kind of work: exact at the ends, whole blocks between. */
function workBetween(lane, from, to) {
  const { spans, tasks, sums } = lane, out = [0, 0, 0, 0];
  const [first, last] = visible(spans, from, to);
  const add = (i) => { out[tasks[spans.position[i]].work] += Math.min(spans.end[i], to) - Math.max(spans.start[i], from); };
  const firstBlock = Math.ceil((first + 1) / BLOCK), lastBlock = Math.floor((last - 1) / BLOCK);
  if (last - first < 3 * BLOCK || lastBlock <= firstBlock) {
    for (let i = first; i < last; i++) add(i);
    return out;
  }
  for (let i = first; i < firstBlock * BLOCK; i++) add(i);
  for (let i = lastBlock * BLOCK; i < last; i++) add(i);
  for (let work = 0; work < out.length; work++) {
    out[work] += sums[lastBlock * WORKS.length + work] - sums[firstBlock * WORKS.length + work];
  }
  return out;
}

class Chart {
  constructor(trace, view, palette, canvas) {
    Object.assign(this, { trace, view, palette, canvas, hovered: null });
    this.show = { path: true, arrows: true, bubbles: true };
  }
  get height() { return AXIS + this.trace.lanes.length * ROW + CHART_END + (this.trace.counters.length ? COUNTERS : 0); }
  get width() { return Math.max(1, this.canvas.clientWidth - LEFT); }
  x(at) { return LEFT + (at - this.view.from) / this.view.length * this.width; }
  at(x) { return this.view.from + (x - LEFT) / this.width * this.view.length; }
  top(lane) { return AXIS + lane * ROW; }

  draw() {
    const [context, width] = surface(this.canvas, this.height);
    this.context = context;
    this.bars = 0;
    context.font = '11px Inter, "Segoe UI", Helvetica, Arial, sans-serif';
    context.textBaseline = 'middle';
    context.save();
    context.beginPath();
    context.rect(LEFT, 0, width - LEFT, this.height);
    context.clip();
    this.drawAxis();
    this.trace.lanes.forEach((lane, index) => this.drawLane(lane, index));
    if (this.show.arrows) this.drawArrows();
    if (this.show.path) this.drawPath();
    this.drawCounters();
    this.drawHovered();
    context.restore();
    this.drawNames();
  }

  drawAxis() {
    const { context, view, palette } = this;
    const rough = view.length / Math.max(2, this.width / 130);
    const power = 10 ** Math.floor(Math.log10(rough));
    const unit = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
    context.strokeStyle = palette.get('--line');
    context.fillStyle = palette.get('--soft');
    context.textAlign = 'left';
    const base = this.origin();
    for (let tick = Math.ceil((view.from - base) / unit); base + tick * unit < view.to; tick++) {
      const x = Math.round(this.x(base + tick * unit)) + 0.5;
      this.line(x, AXIS - 5, x, this.height - CHART_END);
      context.fillText(`${tick > 0 ? '+' : ''}${tick ? (tick < 0 ? '−' : '') + time(Math.abs(tick * unit)) : '0'}`, x + 4, AXIS - 11);
    }
    this.drawSteps();
  }

  /** Times count from the begin of the step in view, or of the trace where many steps are. */
  origin() {
    const { from, steps } = this.trace, { step } = this.view;
    const near = steps.n > 0 && this.view.length < 4 * ((steps.start[step + 1] ?? this.trace.to) - steps.start[step]);
    return near ? steps.start[step] : from;
  }

  /** Where steps begin, unless they are too many to tell apart. */
  drawSteps() {
    const { context, view, trace: { steps }, palette } = this;
    const first = firstIndex(steps.n, (i) => steps.start[i] >= view.from);
    const last = firstIndex(steps.n, (i) => steps.start[i] >= view.to);
    if (last - first > this.width / 40) return;
    context.save();
    context.strokeStyle = context.fillStyle = palette.get('--soft');
    context.setLineDash([4, 4]);
    let free = 0;
    for (let i = first; i < last; i++) {
      const x = Math.round(this.x(steps.start[i])) + 0.5;
      this.line(x, 0, x, this.height - CHART_END);
      const name = `step ${steps.number[i]}`;
      if (x < free) continue;
      context.fillText(name, x + 4, 8);
      free = x + context.measureText(name).width + 12;
    }
    context.restore();
  }

  drawLane(lane, index) {
    const { context, view, palette } = this, top = this.top(index);
    context.fillStyle = palette.get('--lane');
    context.fillRect(LEFT, top, this.width, BAR);
    const [first, last] = visible(lane.spans, view.from, view.to);
    if (last - first > this.width * DENSEST) return this.drawColumns(lane, top);
    if (this.show.bubbles) this.drawBubbles(lane, top);
    for (let i = first; i < last; i++) this.drawBar(lane, i, top);
  }

  drawColumns(lane, top) {
    const { context, palette } = this, paths = new Map();
    // One fill a colour: thousands of changes of colour would cost more than all the rest.
    const put = (colour, x, y, height) => {
      if (!paths.has(colour)) paths.set(colour, new Path2D());
      paths.get(colour).rect(x, y, 1, height);
    };
    for (let x = LEFT; x < LEFT + this.width; x++) {
      const [from, to] = [this.at(x), this.at(x + 1)];
      let y = top + BAR;
      workBetween(lane, from, to).forEach((ns, work) => {
        const height = Math.min(1, ns / (to - from)) * BAR;
        if (height < 0.2) return;
        put(palette.get(WORK_COLOUR[work]), x, y - height, height);
        y -= height;
      });
      if (this.show.bubbles) this.bubbleColumn(lane.bubbles, [from, to], [top, y], (colour, y, height) => put(colour, x, y, height));
    }
    for (const [colour, path] of paths) {
      context.fillStyle = colour;
      context.fill(path);
    }
  }

  /** Shares of causes on top of the work, from a sample where a pixel has many bubbles. */
  bubbleColumn(bubbles, [from, to], [top, y], put) {
    const { palette, trace: { causes } } = this;
    const [first, last] = visible(bubbles, from, to), stride = Math.max(1, Math.ceil((last - first) / 32));
    const shares = causes.map(() => 0);
    for (let i = first; i < last; i += stride) {
      shares[bubbles.cause[i]] += (Math.min(bubbles.end[i], to) - Math.max(bubbles.start[i], from)) * stride / (to - from);
    }
    // The lane's top is what is left for them; a sample may come out above it.
    const sum = shares.reduce((sum, share) => sum + share, 0), scale = Math.min(BAR, (y - top) / Math.max(sum, 1e-9));
    shares.forEach((share, cause) => {
      const height = share * scale;
      if (height < 0.2) return;
      put(palette.bubble(causes[cause]), y - height, height);
      y -= height;
    });
  }

  drawBubbles(lane, top) {
    const { context, view, palette, trace } = this, { bubbles } = lane;
    const [first, last] = visible(bubbles, view.from, view.to);
    for (let i = first; i < last; i++) {
      const x = this.x(bubbles.start[i]), width = this.x(bubbles.end[i]) - x;
      if (width < 0.5) continue;
      context.fillStyle = palette.bubble(trace.causes[bubbles.cause[i]]);
      context.fillRect(x, top + 8, width, BAR - 16);
    }
  }

  drawBar(lane, i, top) {
    const { context, palette, trace } = this, { spans } = lane, task = lane.tasks[spans.position[i]];
    const x = this.x(spans.start[i]), width = Math.max(0.6, this.x(spans.end[i]) - x);
    const gap = width > 5 ? 1 : 0;
    context.fillStyle = palette.stage(trace.stages[task.stage]);
    context.fillRect(x, top, width - gap, BAR);
    context.fillStyle = microBatchColour(task.microBatch);
    context.fillRect(x, top, width - gap, 4);
    this.bars++;
    const left = Math.max(x, LEFT), shown = Math.min(x + width, LEFT + this.width) - left;
    if (shown > 26) this.drawText(label(trace, task), task, left, shown, top);
  }

  drawText(name, task, x, width, top) {
    const { context, palette } = this;
    const layer = task.layer === null ? '' : ` ${task.layer}`;
    const texts = [`m${task.microBatch} ${name}${layer}`, `${name}${layer}`, `m${task.microBatch}${layer && ` L${task.layer}`}`, `m${task.microBatch}`];
    const text = texts.find((text) => context.measureText(text).width < width - 8);
    if (!text) return;
    context.fillStyle = palette.get('--on-bar');
    context.textAlign = 'center';
    context.fillText(text, x + width / 2, top + BAR / 2 + 2);
  }

  /** A→F and F→A: from a send's end to the begin of the receive that took its rows. */
  drawArrows() {
    const { context, view, trace, palette } = this;
    const ranges = trace.lanes.map((lane) => visible(lane.spans, view.from, view.to));
    if (ranges.reduce((sum, [first, last]) => sum + last - first, 0) > MOST_ARROWS) return;
    context.save();
    context.strokeStyle = context.fillStyle = palette.get('--arrow');
    context.globalAlpha = 0.75;
    trace.lanes.forEach((lane, index) => {
      for (let i = ranges[index][0]; i < ranges[index][1]; i++) {
        for (const [from, position] of lane.tasks[lane.spans.position[i]].senders) {
          const sent = find(trace.lanes[from], position, lane.spans.step[i]);
          if (sent >= 0) this.drawArrow(from, trace.lanes[from].spans.end[sent], index, lane.spans.start[i]);
        }
      }
    });
    context.restore();
  }

  drawArrow(from, leaves, to, arrives) {
    const { context } = this, down = to > from;
    const [x0, x1] = [this.x(leaves), this.x(arrives)];
    const [y0, y1] = [this.top(from) + (down ? BAR : 0), this.top(to) + (down ? 0 : BAR)];
    const bend = (y1 - y0) / 2;
    context.beginPath();
    context.moveTo(x0, y0);
    context.bezierCurveTo(x0, y0 + bend, x1, y1 - bend, x1, y1);
    context.stroke();
    const head = down ? -5 : 5;
    context.beginPath();
    context.moveTo(x1, y1);
    context.lineTo(x1 - 3, y1 + head);
    context.lineTo(x1 + 3, y1 + head);
    context.fill();
  }

  /** The critical path: a line under its tasks, and lines where it goes from lane to lane unless they would hide the rest. */
  drawPath() {
    const { context, view, trace: { path, pathStart, lanes }, palette } = this;
    const first = Math.max(0, firstIndex(path.n, (i) => pathStart[i] > view.from) - 1);
    const last = firstIndex(path.n, (i) => pathStart[i] >= view.to);
    const stride = Math.max(1, Math.ceil((last - first) / MOST_RUNS)), joined = last - first < this.width / 8;
    context.save();
    context.strokeStyle = palette.get('--path');
    context.lineWidth = 2.5;
    context.lineJoin = 'round';
    context.beginPath();
    let before = null;
    for (let i = first; i < last; i += stride) {
      const { spans } = lanes[path.lane[i]], y = this.top(path.lane[i]) + BAR + 4;
      const [x0, x1] = [this.x(spans.start[path.first[i]]), this.x(spans.end[path.first[i] + path.count[i] - 1])];
      if (before === null) context.moveTo(x0, y);
      else if (joined) { context.lineTo(x0, before); context.lineTo(x0, y); } else context.moveTo(x0, y);
      context.lineTo(Math.max(x1, x0 + 0.5), y);
      before = y;
    }
    context.stroke();
    context.restore();
  }

  /** Sequences that decode and that wait, and KV pages in use, as steps of a line; each against its own most. */
  drawCounters() {
    const { context, view, trace: { counters, lanes }, palette } = this;
    if (!counters.length) return;
    const top = this.top(lanes.length) + 6, height = COUNTERS - 20;
    context.fillStyle = palette.get('--lane');
    context.fillRect(LEFT, top, this.width, height);
    const first = Math.max(0, firstIndex(counters.length, (i) => counters[i].at > view.from) - 1);
    const last = Math.min(counters.length, firstIndex(counters.length, (i) => counters[i].at >= view.to) + 1);
    const stride = Math.max(1, Math.ceil((last - first) / this.width));
    for (const [key, colour] of COUNTER_LINES) {
      const most = this.most(key);
      context.strokeStyle = palette.get(colour);
      context.lineWidth = 1.5;
      context.beginPath();
      let y = null;
      for (let i = first; i < last; i += stride) {
        const x = this.x(counters[i].at);
        if (y === null) context.moveTo(x, top + height); else context.lineTo(x, y);
        y = top + height - 1 - (height - 3) * counters[i][key] / most;
        context.lineTo(x, y);
      }
      if (y !== null) context.lineTo(this.x(view.to), y);
      context.stroke();
    }
    context.lineWidth = 1;
  }
  most(key) {
    this.highest ??= {};
    return this.highest[key] ??= this.trace.counters.reduce((most, sample) => Math.max(most, sample[key]), 1);
  }

  drawHovered() {
    const { context, palette, hovered } = this;
    if (!hovered) return;
    const x = this.x(hovered.start), width = Math.max(2, this.x(hovered.end) - x);
    context.strokeStyle = palette.get('--ink');
    context.lineWidth = 2;
    context.strokeRect(x, this.top(hovered.lane) - 1, width, BAR + 2);
    context.lineWidth = 1;
  }

  drawNames() {
    const { context, palette, trace } = this;
    context.fillStyle = palette.get('--back');
    context.fillRect(0, 0, LEFT, this.height);
    context.textAlign = 'right';
    trace.lanes.forEach((lane, index) => {
      const y = this.top(index) + BAR / 2;
      context.fillStyle = palette.get('--ink');
      context.font = '600 13px Inter, "Segoe UI", Helvetica, Arial, sans-serif';
      context.fillText(fit(context, lane.name, LEFT - 18), LEFT - 10, y);
    });
    context.font = '11px Inter, "Segoe UI", Helvetica, Arial, sans-serif';
    if (trace.counters.length) {
      COUNTER_LINES.forEach(([key, colour, name], index) => {
        context.fillStyle = palette.get(colour);
        context.fillText(`${name}, most ${this.most(key)}`, LEFT - 10, this.top(trace.lanes.length) + 11 + index * 12.5);
      });
    }
  }

  line(x0, y0, x1, y1) {
    this.context.beginPath();
    this.context.moveTo(x0, y0);
    this.context.lineTo(x1, y1);
    this.context.stroke();
  }

  /** What is under a pixel: a task, a bubble, or nothing. */
  pick(x, y) {
    const lane = Math.floor((y - AXIS) / ROW), at = this.at(x);
    if (x < LEFT || y < AXIS || lane >= this.trace.lanes.length || (y - AXIS) % ROW > BAR) return null;
    const { spans, bubbles } = this.trace.lanes[lane];
    const slack = this.view.length / this.width;
    for (const [kind, items] of [['task', spans], ['bubble', bubbles]]) {
      const i = firstIndex(items.n, (i) => items.end[i] > at);
      const near = [i, i - 1].find((i) => i >= 0 && i < items.n && items.start[i] <= at + slack && items.end[i] >= at - slack);
      if (near !== undefined && (kind === 'bubble' || items.start[near] <= at || items.end[near] - items.start[near] < slack)) {
        return { kind, lane, i: near, start: items.start[near], end: items.end[near] };
      }
    }
    return null;
  }
}

const COUNTER_LINES = [['running', '--attention', 'decoding'], ['waiting', '--path', 'queue'], ['pages', '--combine', 'KV pages']];

function fit(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let short = text;
  while (short.length > 1 && context.measureText(`${short}…`).width > width) short = short.slice(0, -1);
  return `${short}…`;
}
