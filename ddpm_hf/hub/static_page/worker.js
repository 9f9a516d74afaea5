// A thread that draws, so that the page goes on answering. It takes {about} once, and then {job} or {stop}. It answers
// {progress}, {ready}, {noisy, predicted} after each step, {done}, and {error}.

import { Network } from "./network.js";
import { LATER, START, noiseOf } from "./random.js";
import { arc, denoise, inpaint } from "./sampler.js";

let about, network;
let stopped = false;

class Stopped extends Error {}

function joined(arrays) {
  const [all, size] = [new Float32Array(arrays.length * arrays[0].length), arrays[0].length];
  arrays.forEach((array, i) => all.set(array, i * size));
  return all;
}

// Return the noise of some pictures of a seed.
function noiseOfAll(seed, count, use) {
  return joined(Array.from({ length: count }, (_, i) => noiseOf(seed, i, use, network.size)));
}

async function draw(job) {
  const table = about.tables[job.steps];
  const predict = async (x, t) => {
    await new Promise((resolve) => setTimeout(resolve)); // let a message to stop come in
    if (stopped) throw new Stopped();
    return network.predict(x, t, job.labels, job.guidance);
  };
  const x = job.seeds
    ? joined(arc(...job.seeds.map((seed) => noiseOfAll(seed, 1, START)), job.count))
    : noiseOfAll(job.seed, job.count, START);
  let steps = denoise(x, table, about.clip, predict);
  if (job.x0) {
    let use = LATER;
    const noise = () => noiseOfAll(job.seed, job.count, use++);
    const repeated = (array) => joined(Array(job.count).fill(array));
    steps = inpaint(x, repeated(job.x0), repeated(job.known), job.resamplings, noise, table, about.clip, predict);
  }
  postMessage({ noisy: x });
  for await (const stepped of steps) postMessage(stepped);
}

onmessage = async ({ data }) => {
  try {
    if (data.about) {
      about = data.about;
      network = await Network.open(about, (progress) => postMessage({ progress }));
      postMessage({ ready: true });
    } else if (data.job) {
      stopped = false;
      await draw(data.job);
      postMessage({ done: true });
    } else {
      stopped = true;
    }
  } catch (error) {
    postMessage(error instanceof Stopped ? { done: true } : { error: String(error.message ?? error).split("\n")[0] });
  }
};
