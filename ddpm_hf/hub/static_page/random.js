// Random numbers as a function of their place: Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as
// 1, 2, 3"). The noise of a picture depends on the seed and the number of the picture, and on nothing that came before.

export const MOST_SEED = 2 ** 32 - 1;
export const START = 0; // uses of random numbers: x_T,
export const LABEL = 1; // the class,
export const LATER = 2; // and noise that is added later: 2, 3, ...

// Return the upper 32 bits of the product of two whole numbers of 32 bits.
function high(a, b) {
  const a1 = a >>> 16;
  const a0 = a & 0xffff;
  const b1 = b >>> 16;
  const b0 = b & 0xffff;
  const middle = a1 * b0 + ((a0 * b0) >>> 16); // below 2^32
  return a1 * b1 + Math.floor((middle + a0 * b1) / 2 ** 16);
}

// Return four random whole numbers of 32 bits for a counter of four and a key of two.
export function philox([c0, c1, c2, c3], [k0, k1]) {
  for (let round = 0; round < 10; round++) {
    const [low0, low1] = [Math.imul(0xd2511f53, c0), Math.imul(0xcd9e8d57, c2)];
    const [high0, high1] = [high(0xd2511f53, c0), high(0xcd9e8d57, c2)];
    c0 = (high1 ^ c1 ^ k0) >>> 0;
    c1 = low1 >>> 0;
    c2 = (high0 ^ c3 ^ k1) >>> 0;
    c3 = low0 >>> 0;
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  return [c0, c1, c2, c3];
}

// Bring a whole number of 32 bits into (0, 1).
function toUnit(word) {
  return (word + 0.5) / 2 ** 32;
}

// Return noise of the standard normal distribution (Box and Muller 1958).
export function noiseOf(seed, picture, use, count) {
  const numbers = new Float32Array(count);
  for (let i = 0; i < count; i += 4) {
    const words = philox([i / 4, use, picture, 0], [seed, 0]);
    for (let pair = 0; pair < 4; pair += 2) {
      const radius = Math.sqrt(-2 * Math.log(toUnit(words[pair])));
      const angle = 2 * Math.PI * toUnit(words[pair + 1]);
      numbers[i + pair] = radius * Math.cos(angle); // an array drops what is written beyond its end
      numbers[i + pair + 1] = radius * Math.sin(angle);
    }
  }
  return numbers;
}

// Return the number of a class, drawn as often as the weights say.
export function labelOf(seed, picture, weights) {
  let left = toUnit(philox([0, LABEL, picture, 0], [seed, 0])[0]) * weights.reduce((sum, weight) => sum + weight, 0);
  const number = weights.findIndex((weight) => (left -= weight) < 0);
  return number < 0 ? weights.length - 1 : number;
}
