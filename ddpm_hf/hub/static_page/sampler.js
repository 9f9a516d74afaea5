// The reverse process on arrays of numbers, by the rows of sampler.json: DDIM (arXiv 2010.02502), and with it RePaint
// (arXiv 2201.09865). `predict(x, t)` is the network. The functions yield {predicted, noisy}: x_0 and x_{t-1}.

function rowOf(table, i) {
  return Object.fromEntries(Object.entries(table).map(([name, column]) => [name, column[i]]));
}

// Take one step: predict x_0, clip it, and mix x_{t-1}.
export function step(x, output, row, clip) {
  const bound = clip ?? Infinity;
  const [predicted, noisy] = [new Float32Array(x.length), new Float32Array(x.length)];
  for (let i = 0; i < x.length; i++) {
    const x0 = row.x_0_from_sample * x[i] + row.x_0_from_output * output[i];
    predicted[i] = Math.min(Math.max(x0, -bound), bound);
    noisy[i] = row.next_from_x_0 * predicted[i] + row.next_from_sample * x[i] + row.next_from_output * output[i];
  }
  return { predicted, noisy };
}

// Draw from noise.
export async function* denoise(x, table, clip, predict) {
  for (let i = 0; i < table.timesteps.length; i++) {
    const row = rowOf(table, i);
    const stepped = step(x, await predict(x, row.timesteps), row, clip);
    x = stepped.noisy;
    yield stepped;
  }
}

// Draw the pixels that are not known (RePaint, Algorithm 1). Each step but the last is taken several times.
// `known` has 1 for each number of `x0` that stays; `draw()` returns new noise.
export async function* inpaint(x, x0, known, resamplings, draw, table, clip, predict) {
  for (let i = 0; i < table.timesteps.length; i++) {
    const row = rowOf(table, i);
    const times = i + 1 < table.timesteps.length ? resamplings : 1;
    let stepped;
    for (let again = 0; again < times; again++) {
      // Up: q(x_t | x_{t-1}) (line 9).
      if (again > 0) {
        const [kept, noise] = [(row.alpha / row.alpha_next) ** 2, draw()];
        x = x.map((value, k) => Math.sqrt(kept) * value + Math.sqrt(1 - kept) * noise[k]);
      }
      // Down: the known pixels from q(x_{t-1} | x_0), the others from the network (lines 4-8).
      const noise = draw();
      stepped = step(x, await predict(x, row.timesteps), row, clip);
      x = stepped.noisy.map((value, k) => (known[k] ? row.alpha_next * x0[k] + row.sigma_next * noise[k] : value));
    }
    yield { predicted: stepped.predicted.map((value, k) => (known[k] ? x0[k] : value)), noisy: x };
  }
}

// Return points on the arc from one noise to another, as many as `count`.
export function arc(a, b, count) {
  const dot = (u, v) => u.reduce((sum, value, i) => sum + value * v[i], 0);
  const angle = Math.acos(Math.min(Math.max(dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b)), -1), 1));
  const isLine = Math.sin(angle) < 1e-4; // or the arc is not unique
  return Array.from({ length: count }, (_, i) => {
    const weight = i / (count - 1);
    const [of_a, of_b] = isLine
      ? [1 - weight, weight]
      : [Math.sin((1 - weight) * angle) / Math.sin(angle), Math.sin(weight * angle) / Math.sin(angle)];
    return a.map((value, k) => of_a * value + of_b * b[k]);
  });
}
