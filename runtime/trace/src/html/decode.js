// Unpacks what the page was given: variable-length integers in base64 become typed arrays, a few bytes a span.
'use strict';

const NS_PER_US = 1e3, NS_PER_MS = 1e6;
const PARTS = ['', ' send', ' receive', ' exchange'];
const WORKS = ['A', 'F', 'A→F', 'F→A'];
/** Spans of a block of sums: what a column of pixels that covers thousands of spans is drawn from. */
const BLOCK = 64;

class Reader {
  constructor(base64) {
    const text = atob(base64);
    this.bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) this.bytes[i] = text.charCodeAt(i);
    this.at = 0;
  }
  get done() { return this.at >= this.bytes.length; }
  unsigned() {
    let value = 0, scale = 1, byte;
    do {
      byte = this.bytes[this.at++];
      value += (byte & 127) * scale;
      scale *= 128;
    } while (byte > 127);
    return value;
  }
  signed() {
    const value = this.unsigned();
    return value % 2 ? -(value + 1) / 2 : value / 2;
  }
}

function decodeLane(lane) {
  const n = lane.count, reader = new Reader(lane.spans);
  const spans = {
    n, start: new Float64Array(n), end: new Float64Array(n), position: new Uint32Array(n), step: new Float64Array(n),
    rows: new Uint32Array(n), bytes: new Float64Array(n), waitedFor: new Int32Array(n), waited: new Float64Array(n),
    noWork: new Float64Array(n),
  };
  let end = 0, position = -1, step = 0;
  for (let i = 0; i < n; i++) {
    spans.start[i] = end + reader.unsigned();
    spans.end[i] = end = spans.start[i] + reader.unsigned();
    spans.position[i] = position += reader.signed() + 1;
    spans.step[i] = step += reader.signed();
    spans.rows[i] = reader.unsigned();
    spans.bytes[i] = reader.unsigned();
    spans.waitedFor[i] = reader.unsigned() - 1;
    spans.waited[i] = reader.unsigned();
    spans.noWork[i] = reader.unsigned();
  }
  const tasks = lane.tasks.map(([stage, part, work, layer, microBatch, behind, senders]) =>
    ({ stage, part, work, layer, microBatch, behind, senders }));
  return { name: lane.name, side: lane.side, tasks, spans, sums: blockSums(spans, tasks), bubbles: decodeBubbles(lane.bubbles) };
}

/** Busy time by kind of work up to each block of spans. */
function blockSums(spans, tasks) {
  const blocks = Math.ceil(spans.n / BLOCK);
  const sums = new Float64Array((blocks + 1) * WORKS.length);
  for (let block = 0; block < blocks; block++) {
    const to = (block + 1) * WORKS.length;
    for (let work = 0; work < WORKS.length; work++) sums[to + work] = sums[to - WORKS.length + work];
    for (let i = block * BLOCK; i < Math.min(spans.n, (block + 1) * BLOCK); i++) {
      sums[to + tasks[spans.position[i]].work] += spans.end[i] - spans.start[i];
    }
  }
  return sums;
}

function decodeBubbles(base64) {
  const reader = new Reader(base64), start = [], end = [], cause = [];
  let at = 0;
  while (!reader.done) {
    start.push(at += reader.unsigned());
    end.push(at += reader.unsigned());
    cause.push(reader.unsigned());
  }
  return { n: start.length, start: Float64Array.from(start), end: Float64Array.from(end), cause: Uint8Array.from(cause) };
}

/** Runs of neighbouring spans on the critical path, by time. */
function decodePath(base64) {
  const reader = new Reader(base64), lane = [], first = [], count = [];
  while (!reader.done) {
    lane.push(reader.unsigned());
    first.push(reader.unsigned());
    count.push(reader.unsigned());
  }
  return { n: lane.length, lane, first, count };
}

function decodeSteps(base64) {
  const reader = new Reader(base64), number = [], start = [];
  let step = 0, at = 0;
  while (!reader.done) {
    number.push(step += reader.unsigned());
    start.push(at += reader.unsigned());
  }
  return { n: number.length, number, start };
}

/** How full the run was; one list of samples. */
function decodeCounters(base64) {
  const reader = new Reader(base64), samples = [];
  let at = 0;
  while (!reader.done) {
    at += reader.unsigned();
    const [microBatch, rows, running, waiting, pages] = [0, 0, 0, 0, 0].map(() => reader.unsigned());
    samples.push({ at, microBatch, rows, running, waiting, pages });
  }
  return samples;
}

function decode(data) {
  const lanes = data.lanes.map(decodeLane);
  const ends = lanes.filter((lane) => lane.spans.n).map((lane) => lane.spans.end[lane.spans.n - 1]);
  const starts = lanes.filter((lane) => lane.spans.n).map((lane) => lane.spans.start[0]);
  const trace = {
    lanes, digest: data.digest, causes: data.causes, dropped: data.dropped,
    stages: data.stages.map(([id, kind, role]) => ({ id, kind, role })),
    path: decodePath(data.path), steps: decodeSteps(data.steps), counters: decodeCounters(data.counters),
    from: starts.length ? Math.min(...starts) : 0, to: ends.length ? Math.max(...ends) : 1,
  };
  trace.pathStart = Float64Array.from(trace.path.lane, (lane, i) => lanes[lane].spans.start[trace.path.first[i]]);
  trace.onPath = lanes.map((lane) => new Uint8Array(lane.spans.n));
  for (let i = 0; i < trace.path.n; i++) {
    trace.onPath[trace.path.lane[i]].fill(1, trace.path.first[i], trace.path.first[i] + trace.path.count[i]);
  }
  return trace;
}

/** Index of the first of `n` entries that `is` holds for; it must hold for all after it. */
function firstIndex(n, is) {
  let low = 0, high = n;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (is(middle)) high = middle; else low = middle + 1;
  }
  return low;
}

/** Spans of a lane that overlap a range of time: from, to (exclusive). */
function visible(items, from, to) {
  return [firstIndex(items.n, (i) => items.end[i] > from), firstIndex(items.n, (i) => items.start[i] >= to)];
}

/** A span by position and step, or −1. */
function find(lane, position, step) {
  const { spans, tasks } = lane;
  const place = (position, step) => (step + tasks[position].behind) * tasks.length + position;
  const wanted = place(position, step);
  const i = firstIndex(spans.n, (i) => place(spans.position[i], spans.step[i]) >= wanted);
  return i < spans.n && spans.position[i] === position && spans.step[i] === step ? i : -1;
}

function label(trace, task) {
  const laterPart = task.part === 3 && task.work < 2;
  return trace.stages[task.stage].id + (laterPart ? ' later part' : PARTS[task.part]);
}

function time(ns) {
  const of = (value, unit) => `${value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)} ${unit}`;
  if (ns < 1e3) return `${Math.round(ns)} ns`;
  if (ns < 1e6) return of(ns / 1e3, 'µs');
  return ns < 1e9 ? of(ns / 1e6, 'ms') : of(ns / 1e9, 's');
}
