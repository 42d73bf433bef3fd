// How long each stage of a frame takes, as running means, and what of it is shown.

const WEIGHT = 0.1, BAR_MS = 100 / 3; // the bar is as long as a frame of 30 a second, or as the stages if these take longer
const STAGES = ['capture', 'transfer', 'decode', 'hands', 'draw'];

export class Pace {
  #means = {};
  #last = 0;
  #interval = 0;
  #delay = 0;
  #shown = 0;

  constructor(elements) {
    this.elements = elements;
    this.rows = STAGES.map((name, i) => {
      const row = document.createElement('div'), piece = document.createElement('i');
      row.className = piece.className = `stage-${i}`;
      row.innerHTML = `<dt>${name}</dt><dd>–</dd>`;
      elements.stages.append(row);
      elements.bar.append(piece);
      return { name, piece, number: row.lastChild };
    });
  }

  reset() {
    [this.#means, this.#last, this.#interval, this.#delay] = [{}, 0, 0, 0];
    this.#show(0);
  }

  /** Note a frame: milliseconds by stage, and from camera to screen. */
  note(stages, delay) {
    const now = performance.now(), mean = (old, value) => old ? old + WEIGHT * (value - old) : value;
    for (const [name, ms] of Object.entries(stages)) this.#means[name] = mean(this.#means[name], ms);
    if (this.#last && now - this.#last < 2000) this.#interval = mean(this.#interval, now - this.#last);
    this.#last = now;
    this.#delay = mean(this.#delay, delay);
    if (now - this.#shown > 250) this.#show(now);
  }

  #show(now) {
    this.#shown = now;
    const total = Object.values(this.#means).reduce((sum, ms) => sum + ms, 0);
    this.elements.fps.textContent = this.#interval ? (1000 / this.#interval).toFixed(0) : '–';
    this.elements.delay.textContent = this.#delay ? `${this.#delay.toFixed(0)} ms` : '–';
    for (const { name, piece, number } of this.rows) {
      const ms = this.#means[name];
      number.textContent = ms === undefined ? '–' : `${ms.toFixed(1)} ms`;
      piece.style.width = `${100 * (ms ?? 0) / Math.max(total, BAR_MS)}%`;
    }
  }
}
