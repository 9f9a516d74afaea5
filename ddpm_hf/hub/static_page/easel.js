// The picture that is inpainted, and a mask that is drawn over it, by a pointer or by the arrow keys and the space bar.

const MASK = [255, 80, 0, 170];
const CURSOR = [255, 255, 255, 230];
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Easel {
  constructor(place, pictures, brush) {
    Object.assign(this, { pictures, brush, array: null, mask: new Uint8Array(pictures.width * pictures.height) });
    this.cursor = [pictures.width >> 1, pictures.height >> 1];
    [this.picture, this.overlay] = [pictures.canvas(), pictures.canvas()];
    this.overlay.tabIndex = 0;
    this.overlay.setAttribute("role", "application");
    this.overlay.setAttribute("aria-label", "Mask: move with the arrow keys, paint with the space bar");
    place.append(this.picture, this.overlay);
    this.overlay.onpointerdown = (event) => {
      this.overlay.setPointerCapture(event.pointerId);
      this.paint((this.last = this.positionOf(event)));
    };
    this.overlay.onpointermove = (event) => event.buttons && this.stroke(this.positionOf(event));
    this.overlay.onkeydown = (event) => this.press(event);
    this.overlay.onfocus = this.overlay.onblur = () => this.show();
  }

  // Put up a picture. The mask stays.
  put(array) {
    this.array = array;
    this.pictures.show(this.picture, array);
  }

  clear() {
    this.mask.fill(0);
    this.show();
  }

  // Return 1 for each number of the picture that is not painted over.
  known() {
    if (!this.mask.includes(1)) {
      throw new Error("Nothing is to be painted: draw over a part of the picture first.");
    }
    return Uint8Array.from({ length: this.pictures.size }, (_, i) => 1 - this.mask[i % this.mask.length]);
  }

  positionOf(event) {
    const place = this.overlay.getBoundingClientRect();
    const share = [(event.clientX - place.x) / place.width, (event.clientY - place.y) / place.height];
    return [share[0] * this.pictures.width - 0.5, share[1] * this.pictures.height - 0.5];
  }

  press(event) {
    const [move, { width, height }] = [ARROWS[event.key], this.pictures];
    if (!move && event.key !== " ") return;
    event.preventDefault(); // do not scroll
    if (event.key === " ") this.paint(this.cursor);
    else this.cursor = [width, height].map((side, i) => Math.min(Math.max(this.cursor[i] + move[i], 0), side - 1));
    this.show();
  }

  // Paint from the last position to this one.
  stroke([x, y]) {
    const [from_x, from_y] = this.last;
    const steps = Math.ceil(Math.hypot(x - from_x, y - from_y));
    const between = (from, to, i) => from + ((to - from) * i) / steps;
    for (let i = 1; i <= steps; i++) this.paint([between(from_x, x, i), between(from_y, y, i)]);
    this.last = [x, y];
  }

  // Paint a disc; the brush has its diameter in pixels of the model.
  paint([x, y]) {
    const { width, height } = this.pictures;
    const radius = Number(this.brush.value) / 2;
    for (let row = 0; row < height; row++) {
      for (let column = 0; column < width; column++) {
        if (Math.hypot(column - x, row - y) <= radius) this.mask[row * width + column] = 1;
      }
    }
    this.show();
  }

  show() {
    const { width, height } = this.pictures;
    const image = new ImageData(width, height);
    this.mask.forEach((painted, i) => painted && image.data.set(MASK, 4 * i));
    if (this.overlay.matches(":focus-visible")) image.data.set(CURSOR, 4 * (this.cursor[1] * width + this.cursor[0]));
    this.overlay.getContext("2d").putImageData(image, 0, 0);
  }
}
