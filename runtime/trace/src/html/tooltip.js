// The numbers of the task or bubble under the pointer.
'use strict';

const BUBBLE_TEXT = {
  attention: 'waiting for attention', ffn: 'waiting for the FFN', transfer: 'waiting for a transfer',
  admission: 'nothing to decode', host: 'planning, handing over, waking',
};

function facts(trace, hit) {
  const lane = trace.lanes[hit.lane];
  if (hit.kind === 'bubble') {
    const cause = trace.causes[lane.bubbles.cause[hit.i]];
    return [BUBBLE_TEXT[cause], [['idle', time(hit.end - hit.start)], ['lane', lane.name]]];
  }
  const { spans, tasks } = lane, i = hit.i, task = tasks[spans.position[i]];
  const rows = [
    ['took', time(hit.end - hit.start)], ['micro-batch', task.microBatch], ['step', spans.step[i]], ['rows', spans.rows[i]],
  ];
  if (task.layer !== null) rows.splice(1, 0, ['layer', task.layer]);
  if (spans.bytes[i]) rows.push(['bytes', spans.bytes[i].toLocaleString('en')]);
  if (spans.waitedFor[i] >= 0) rows.push([`waited for ${trace.lanes[spans.waitedFor[i]].name}`, time(spans.waited[i])]);
  if (spans.noWork[i]) rows.push(['before, no work for', time(spans.noWork[i])]);
  rows.push(['began at', time(hit.start - trace.from)], ['critical path', trace.onPath[hit.lane][i] ? 'yes' : 'no']);
  return [`${label(trace, task)}`, rows];
}

function showTip(tip, trace, hit, x, y) {
  tip.hidden = !hit;
  if (!hit) return;
  const [title, rows] = facts(trace, hit);
  const list = document.createElement('dl');
  for (const [name, value] of rows) {
    const [term, text] = [document.createElement('dt'), document.createElement('dd')];
    term.textContent = name;
    text.textContent = value;
    list.append(term, text);
  }
  const head = document.createElement('b');
  head.textContent = title;
  tip.replaceChildren(head, list);
  const area = tip.parentElement;
  const left = x + 16 + tip.offsetWidth > area.clientWidth ? x - tip.offsetWidth - 12 : x + 16;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, Math.min(y + 14, area.clientHeight - tip.offsetHeight - 4))}px`;
}
