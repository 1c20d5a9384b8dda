// The strip with the whole trace, and what the chart shows of it.
'use strict';

/** The whole trace: each lane's busy share in a row, and what the chart shows of it. */
class Overview {
  constructor(trace, view, palette, canvas) { Object.assign(this, { trace, view, palette, canvas, image: null }); }
  forget() { this.image = null; }

  draw() {
    const [context, width] = surface(this.canvas, 44);
    if (!this.image || this.image.width !== this.canvas.width) this.image = this.paint(width);
    context.drawImage(this.image, 0, 0, width, 44);
    const { from, to } = this.trace, x = (at) => (at - from) / (to - from) * width;
    const [left, right] = [Math.max(0, x(this.view.from)), Math.min(width, x(this.view.to))];
    context.fillStyle = this.palette.get('--veil');
    context.fillRect(0, 0, left, 44);
    context.fillRect(right, 0, width - right, 44);
    context.strokeStyle = this.palette.get('--focus');
    context.lineWidth = 1.5;
    context.strokeRect(left + 0.75, 0.75, Math.max(2, right - left - 1.5), 42.5);
  }

  paint(width) {
    const image = document.createElement('canvas');
    [image.width, image.height] = [this.canvas.width, this.canvas.height];
    const context = image.getContext('2d');
    context.scale(image.width / width, image.height / 44);
    const { lanes, from, to } = this.trace, row = 40 / lanes.length;
    lanes.forEach((lane, index) => {
      for (let x = 0; x < width; x += 1) {
        const [a, b] = [from + (to - from) * x / width, from + (to - from) * (x + 1) / width];
        let y = 2 + (index + 1) * row;
        workBetween(lane, a, b).forEach((ns, work) => {
          const height = Math.min(1, ns / (b - a)) * row * 0.9;
          context.fillStyle = this.palette.get(WORK_COLOUR[work]);
          context.fillRect(x, y -= height, 1, height);
        });
      }
    });
    return image;
  }
}
