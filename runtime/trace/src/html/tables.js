// Tables of what is in view: lanes with their bubbles by cause, stages with their times. A click on a head sorts.
'use strict';

class SortedTable {
  /** `columns`: name, text of a row's cell, and the number or text it is sorted by. */
  constructor(table, columns, sort) { Object.assign(this, { table, columns, sort, descending: true, rows: [] }); }

  show(rows) {
    this.rows = rows;
    const [, , key] = this.columns[this.sort];
    const order = (a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0);
    const sorted = [...rows].sort((a, b) => (this.descending ? order(b, a) : order(a, b)));
    const head = this.table.createTHead(), body = this.table.tBodies[0] ?? this.table.createTBody();
    head.replaceChildren(this.row('th', this.columns.map(([name], index) => {
      const mark = index === this.sort ? (this.descending ? ' ↓' : ' ↑') : '';
      return [`${name}${mark}`];
    })));
    [...head.rows[0].cells].forEach((cell, index) => {
      cell.classList.toggle('sorted', index === this.sort);
      cell.addEventListener('click', () => this.sortBy(index));
    });
    body.replaceChildren(...sorted.map((row) => this.row('td', this.columns.map(([, text]) => text(row)))));
  }

  sortBy(index) {
    this.descending = index === this.sort ? !this.descending : index > 0;
    this.sort = index;
    this.show(this.rows);
  }

  /** A cell is its text, and before it a swatch of a colour if it has one. */
  row(kind, cells) {
    const row = document.createElement('tr');
    for (const [text, colour] of cells) {
      const cell = document.createElement(kind);
      if (colour) {
        const swatch = document.createElement('i');
        swatch.style.background = colour;
        cell.append(swatch);
      }
      cell.append(text);
      row.append(cell);
    }
    return row;
  }
}

/** Busy and idle time of every lane in view. */
function laneRows(trace, view) {
  const [from, to] = [Math.max(view.from, trace.from), Math.min(view.to, trace.to)];
  return trace.lanes.map((lane) => {
    const busy = workBetween(lane, from, to).reduce((sum, ns) => sum + ns, 0);
    const idle = trace.causes.map(() => 0), { bubbles } = lane;
    const [first, last] = visible(bubbles, from, to);
    for (let i = first; i < last; i++) {
      idle[bubbles.cause[i]] += Math.min(bubbles.end[i], to) - Math.max(bubbles.start[i], from);
    }
    return { name: lane.name, busy, idle, length: Math.max(1, to - from) };
  });
}

function laneColumns(trace) {
  const share = (ns, row) => [ns / row.length < 0.0005 ? '–' : `${(ns / row.length * 100).toFixed(1)} %`];
  const short = { attention: 'for A', ffn: 'for F', transfer: 'transfer', admission: 'no work', host: 'host' };
  return [
    ['lane', (row) => [row.name], (row) => row.name],
    ['busy', (row) => share(row.busy, row), (row) => row.busy],
    ...trace.causes.map((cause, i) => [short[cause] ?? cause, (row) => share(row.idle[i], row), (row) => row.idle[i]]),
  ];
}

/** Times by stage of the tasks that begin in view. */
function stageRows(trace, view) {
  const groups = new Map();
  for (const [index, lane] of trace.lanes.entries()) {
    const { spans, tasks } = lane;
    const last = firstIndex(spans.n, (i) => spans.start[i] >= view.to);
    for (let i = firstIndex(spans.n, (i) => spans.start[i] >= view.from); i < last; i++) {
      const task = tasks[spans.position[i]], key = task.stage * PARTS.length + task.part;
      let group = groups.get(key);
      if (!group) groups.set(key, group = { task, times: [], total: 0, path: 0, rows: 0, bytes: 0 });
      const took = spans.end[i] - spans.start[i];
      group.times.push(took);
      group.total += took;
      group.rows += spans.rows[i];
      group.bytes += spans.bytes[i];
      if (trace.onPath[index][i]) group.path += took;
    }
  }
  const percentile = (sorted, share) => sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)];
  return [...groups.values()].map((group) => {
    const sorted = Float64Array.from(group.times).sort(), { task, total, path, rows, bytes } = group;
    const name = label(trace, task), count = sorted.length;
    return { name, stage: trace.stages[task.stage], count, total, path, rows, bytes, mean: total / count, p50: percentile(sorted, 0.5), p99: percentile(sorted, 0.99) };
  });
}

function stageColumns(palette) {
  const number = (value) => [value ? value.toLocaleString('en') : '–'];
  return [
    ['stage', (row) => [row.name, palette.stage(row.stage)], (row) => row.name],
    ['count', (row) => number(row.count), (row) => row.count],
    ['total', (row) => [time(row.total)], (row) => row.total],
    ['on the path', (row) => [row.path ? time(row.path) : '–'], (row) => row.path],
    ['mean', (row) => [time(row.mean)], (row) => row.mean],
    ['p50', (row) => [time(row.p50)], (row) => row.p50],
    ['p99', (row) => [time(row.p99)], (row) => row.p99],
    ['rows', (row) => number(row.rows), (row) => row.rows],
    ['bytes', (row) => number(row.bytes), (row) => row.bytes],
  ];
}
