// The page's side of the worker: one job at a time.

export class Engine {
  constructor() {
    this.worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => this.answer(data);
    const missing = "worker.js, or a file that it needs, is missing.";
    this.worker.onerror = (event) => this.answer({ error: event.message || missing });
    this.busy = false;
  }

  // Load the model. `onProgress` takes the share that is loaded.
  open(about, onProgress) {
    return this.send({ about }, ({ progress }) => onProgress(progress));
  }

  // Draw. `onStep` takes {noisy, predicted}: first the noise alone, then the results of each step.
  draw(job, onStep) {
    return this.send({ job }, onStep);
  }

  stop() {
    this.worker.postMessage({ stop: true });
  }

  send(message, onNews) {
    this.busy = true;
    return new Promise((resolve, reject) => {
      Object.assign(this, { onNews, resolve, reject });
      this.worker.postMessage(message);
    });
  }

  answer(data) {
    if (!(data.done || data.ready || data.error)) return this.onNews(data);
    this.busy = false;
    return data.error ? this.reject(new Error(data.error)) : this.resolve();
  }
}
