// The network, run by onnxruntime-web in one thread, since a static page has no shared memory.

const RUNTIME = "./runtime/";
const WASM = "ort-wasm-simd-threaded.wasm";
const PIXELS_AT_ONCE = 2 ** 16; // larger batches need more memory, and are no faster

// Download a file, and tell how many bytes have come.
async function download(path, onBytes) {
  const answer = await fetch(new URL(path, import.meta.url));
  if (!answer.ok) throw new Error(`${path.replace("./", "")} is missing (status ${answer.status}).`);
  const [reader, parts] = [answer.body.getReader(), []];
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    onBytes(part.value.length);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

export class Network {
  constructor(ort, session, about) {
    Object.assign(this, { ort, session, about });
    this.size = about.sample_shape.reduce((product, side) => product * side);
    this.atOnce = Math.max(1, Math.floor(PIXELS_AT_ONCE / (about.sample_shape[1] * about.sample_shape[2])));
  }

  // Download the runtime and the model, and open it. `onProgress` takes the share that is done.
  static async open(about, onProgress) {
    const total = Object.values(about.bytes).reduce((sum, bytes) => sum + bytes);
    let loaded = 0;
    const onBytes = (bytes) => onProgress(Math.min((loaded += bytes) / total, 1));
    const files = [download("./model.onnx", onBytes), download(RUNTIME + WASM, onBytes)];
    const [model, wasmBinary] = await Promise.all(files);
    const ort = await import(`${RUNTIME}ort.wasm.min.mjs`);
    const wasmPaths = { mjs: new URL(`${RUNTIME}${WASM.replace(".wasm", ".mjs")}`, import.meta.url).href };
    Object.assign(ort.env.wasm, { wasmBinary, wasmPaths, numThreads: 1 });
    return new Network(ort, await ort.InferenceSession.create(model, { executionProviders: ["wasm"] }), about);
  }

  // Return the output for pictures x_t at one timestep, of the channels of x_t. `labels` are null without classes.
  async predict(x, t, labels, guidance) {
    const outputs = new Float32Array(x.length);
    const [all, atOnce] = [x.length / this.size, this.atOnce];
    for (let first = 0; first < all; first += atOnce) {
      const part = x.subarray(first * this.size, (first + atOnce) * this.size);
      const ofPart = labels && labels.slice(first, first + atOnce);
      let output = await this.run(part, t, ofPart);
      if (labels && guidance !== 1) {
        // Classifier-free guidance (arXiv 2207.12598). The number after the last class stands for none.
        const without = await this.run(part, t, ofPart.map(() => this.about.class_names.length));
        output = output.map((value, i) => without[i] + guidance * (value - without[i]));
      }
      outputs.set(output, first * this.size);
    }
    return outputs;
  }

  async run(x, t, labels) {
    const count = x.length / this.size;
    const whole = (numbers) => new this.ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), [count]);
    const inputs = {
      sample: new this.ort.Tensor("float32", x, [count, ...this.about.sample_shape]),
      timestep: whole(Array(count).fill(t)),
      ...(labels && { class_labels: whole(labels) }),
    };
    const results = await this.session.run(inputs);
    const { data } = Object.values(results)[0];
    const each = data.length / count; // twice the size of x_t, if the network predicts variances too
    const output = new Float32Array(x.length);
    for (let i = 0; i < count; i++) output.set(data.subarray(i * each, i * each + this.size), i * this.size);
    return output;
  }
}
