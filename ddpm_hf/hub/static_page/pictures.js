// Pictures between arrays of numbers in [-1, 1], `(channels, height, width)`, and canvases, and files.

export class Pictures {
  constructor([channels, height, width]) {
    Object.assign(this, { channels, height, width });
    this.size = channels * height * width;
  }

  canvas() {
    return Object.assign(document.createElement("canvas"), { width: this.width, height: this.height });
  }

  // Show an array on a canvas of the model's size.
  show(canvas, array) {
    const area = this.width * this.height;
    const image = new ImageData(this.width, this.height);
    for (let i = 0; i < area; i++) {
      for (let colour = 0; colour < 3; colour++) {
        image.data[4 * i + colour] = (array[(colour % this.channels) * area + i] / 2 + 0.5) * 255; // rounds, and clips
      }
      image.data[4 * i + 3] = 255;
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  // Return the array of a file, and a sentence on what the picture lost. It is cut to its centre, and put on white.
  async read(file) {
    const bitmap = await createImageBitmap(file).catch(() => {
      throw new Error(`${file.name} cannot be read as a picture; choose a PNG or JPEG file.`);
    });
    const scale = Math.max(this.width / bitmap.width, this.height / bitmap.height);
    const [width, height] = [scale * bitmap.width, scale * bitmap.height];
    const context = this.canvas().getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, this.width, this.height);
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, (this.width - width) / 2, (this.height - height) / 2, width, height);
    const isSame = bitmap.width === this.width && bitmap.height === this.height;
    const fitted = `It was fitted from ${bitmap.width} x ${bitmap.height} to ${this.width} x ${this.height} pixels.`;
    const note = isSame ? "" : fitted;
    return { array: this.arrayOf(context.getImageData(0, 0, this.width, this.height).data), note };
  }

  arrayOf(bytes) {
    const area = this.width * this.height;
    const array = new Float32Array(this.size);
    for (let i = 0; i < area; i++) {
      const [red, green, blue] = bytes.subarray(4 * i, 4 * i + 3);
      const grey = Math.round(0.299 * red + 0.587 * green + 0.114 * blue);
      const colours = this.channels === 1 ? [grey] : [red, green, blue];
      colours.forEach((colour, channel) => (array[channel * area + i] = colour / 127.5 - 1));
    }
    return array;
  }
}

// Let the visitor keep a canvas as a PNG file.
export function save(canvas, name) {
  const link = Object.assign(document.createElement("a"), { download: name, href: canvas.toDataURL("image/png") });
  link.click();
}
