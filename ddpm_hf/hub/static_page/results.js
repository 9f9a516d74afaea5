// Pictures on their way out of the noise: a grid, and a slider over the steps.

import { save } from "./pictures.js";

const ICONS = { save: "M8 2v8M5 7l3 3 3-3M3 14h10", repaint: "M3 13l1-4 7-7 3 3-7 7zM9 4l3 3" };
const REPLAY = 2000; // milliseconds
const still = matchMedia("(prefers-reduced-motion: reduce)");

function icon(name, label, onclick) {
  const button = Object.assign(document.createElement("button"), { type: "button", title: label, onclick });
  button.setAttribute("aria-label", label);
  button.innerHTML = `<svg viewBox="0 0 16 16" aria-hidden="true"><path d="${ICONS[name]}"/></svg>`;
  return button;
}

export class Results {
  // `repaint` takes the array of a picture that a person wants to inpaint.
  constructor(panel, name, pictures, repaint) {
    Object.assign(this, { name, pictures, repaint, canvases: [] });
    panel.insertAdjacentHTML(
      "beforeend",
      `<div class="pictures"></div>
      <div class="track" hidden>
        <div class="way">
          <label for="${name}-step">From noise to picture <output></output></label>
          <input id="${name}-step" type="range" min="0" value="0">
        </div>
        <button type="button">Replay</button>
        <fieldset aria-label="What to show">
          <label><input type="radio" name="${name}-view" value="noisy" checked>Noisy</label>
          <label><input type="radio" name="${name}-view" value="predicted">Predicted</label>
        </fieldset>
      </div>`,
    );
    [this.grid, this.track] = [panel.querySelector(".pictures"), panel.querySelector(".track")];
    [this.slider, this.output] = [this.track.querySelector("[type=range]"), this.track.querySelector("output")];
    this.slider.oninput = () => (this.rest(), this.show());
    this.track.onchange = () => this.show();
    this.track.querySelector("button").onclick = () => this.replay();
  }

  // Make room for pictures.
  begin(captions) {
    this.rest();
    Object.assign(this, { frames: { noisy: [], predicted: [] }, canvases: captions.map(() => this.pictures.canvas()) });
    this.grid.replaceChildren(...captions.map((caption, i) => this.figure(caption, i)));
    this.track.hidden = true;
  }

  figure(caption, i) {
    const [figure, foot, words] = ["figure", "figcaption", "span"].map((name) => document.createElement(name));
    const canvas = this.canvases[i];
    const label = `${this.name} ${i + 1}`;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", caption ? `${label}, ${caption}` : label);
    words.textContent = caption;
    foot.append(words, icon("repaint", `Inpaint ${label}`, () => this.repaint(this.arrayOf(i))));
    foot.append(icon("save", `Save ${label}`, () => save(canvas, `${label.replaceAll(" ", "-")}.png`)));
    figure.append(canvas, foot);
    return figure;
  }

  // Take the next frame: {noisy, predicted}. The first has no prediction.
  add({ noisy, predicted }) {
    this.frames.noisy.push(noisy);
    if (predicted) this.frames.predicted.push(predicted);
    this.slider.max = this.frames.noisy.length - 1;
    this.slider.value = this.slider.max;
    if (!still.matches) this.show();
  }

  // There are no more frames. `areAll` says that the last is without noise, and not that a person stopped before.
  end(areAll) {
    if (areAll) this.frames.predicted.push(this.frames.noisy.at(-1));
    this.track.hidden = this.frames.noisy.length < 2;
    this.show();
  }

  // Return a picture of the last frame.
  arrayOf(i) {
    const { size } = this.pictures;
    return this.frames.noisy.at(-1).slice(i * size, (i + 1) * size);
  }

  show() {
    const frames = this.frames[this.track.querySelector("input:checked").value];
    const frame = frames[Math.min(this.slider.value, frames.length - 1)];
    const { size } = this.pictures;
    const show = (canvas, i) => this.pictures.show(canvas, frame.subarray(i * size, (i + 1) * size));
    if (frame) this.canvases.forEach(show);
    this.output.value = `${this.slider.value} of ${this.slider.max}`;
  }

  replay() {
    this.rest();
    this.slider.value = 0;
    this.show();
    this.timer = setInterval(() => {
      this.slider.stepUp();
      this.show();
      if (this.slider.value === this.slider.max) this.rest();
    }, REPLAY / this.slider.max);
  }

  rest() {
    clearInterval(this.timer);
  }
}
