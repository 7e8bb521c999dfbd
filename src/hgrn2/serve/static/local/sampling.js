// How one token is chosen from its logits; the steps apply in the order in which `hgrn2 generate` takes them.

/** Random numbers in [0, 1) from a seed (sfc32); the sequence is not that of PyTorch. */
export function randomOf(seed) {
  let a = 0x9e3779b9 ^ seed, b = 0x243f6a88 ^ Math.floor(seed / 2 ** 32), c = 0xb7e15162, d = 1;
  const next = () => {
    const t = (a + b + d) | 0;
    d = (d + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = ((c << 21) | (c >>> 11)) + t | 0;
    return (t >>> 0) / 2 ** 32;
  };
  for (let n = 0; n < 15; n++) next();
  return next;
}

/** ln of the sum of exponentials. */
export function logSumExp(logits) {
  let top = -Infinity;
  for (const x of logits) if (x > top) top = x;
  let sum = 0;
  for (const x of logits) sum += Math.exp(x - top);
  return top + Math.log(sum);
}

/** The k most probable ids, likeliest first; of equal ones the lower id. */
export function mostProbable(logits, k) {
  const found = [];
  for (let id = 0; id < logits.length; id++) {
    const x = logits[id];
    if (found.length === k && x <= logits[found[k - 1]]) continue;
    let place = found.length;
    while (place > 0 && logits[found[place - 1]] < x) place--;
    found.splice(place, 0, id);
    if (found.length > k) found.pop();
  }
  return found;
}

/**
 * The next id.
 * @param {Float32Array} logits
 * @param {{greedy?: boolean, temperature?: number, top_k?: number, top_p?: number, min_p?: number}} options
 * @param {() => number} random
 */
export function choose(logits, options, random) {
  if (options.greedy) return mostProbable(logits, 1)[0];
  const { temperature = 1, top_k: topK = 0, top_p: topP = 1, min_p: minP = 0 } = options;
  let ids = Array.from(logits.keys());
  if (topK > 0 || topP < 1) ids.sort((a, b) => logits[b] - logits[a] || a - b);
  if (topK > 0) ids = ids.slice(0, topK);
  const top = ids.reduce((most, id) => Math.max(most, logits[id]), -Infinity);
  let weights = ids.map((id) => Math.exp((logits[id] - top) / temperature));
  if (topP < 1) {
    const whole = weights.reduce((a, b) => a + b, 0) * topP;
    let sum = 0;
    const end = weights.findIndex((weight) => (sum += weight) >= whole);
    weights = end < 0 ? weights : weights.slice(0, end + 1);
  }
  const least = minP; // the most probable one has weight 1
  let total = 0;
  weights = weights.map((weight) => (weight >= least ? ((total += weight), weight) : 0));
  let left = random() * total;
  for (let n = 0; n < weights.length; n++) {
    left -= weights[n];
    if (left < 0 && weights[n] > 0) return ids[n];
  }
  return ids[weights.findLastIndex((weight) => weight > 0)];
}
