// Skeletons over the picture without WebGL.

const COLORS = ['#ff5c5c', '#ffbe3c', '#60dc60', '#46b4ff', '#c878ff'];

export class FlatView {
  constructor(canvas) { this.canvas = canvas; }

  setShape(_, bones) { this.bones = bones; }

  look() {}

  resetView() {}

  show({ hands, width, height }) {
    Object.assign(this.canvas, { width, height });
    const pen = this.canvas.getContext('2d');
    pen.lineWidth = Math.max(width, height) / 200;
    pen.lineCap = 'round';
    for (const { joints2d } of hands) {
      for (const [a, b] of this.bones ?? []) {
        pen.strokeStyle = COLORS[(b - 1) >> 2];
        pen.beginPath();
        pen.moveTo(joints2d[2 * a] + 0.5, joints2d[2 * a + 1] + 0.5);
        pen.lineTo(joints2d[2 * b] + 0.5, joints2d[2 * b + 1] + 0.5);
        pen.stroke();
      }
    }
  }
}
