// Numbers about states: sizes, effective ranks, distances. A state is [H,K,V] in one Float32Array.

/** Singular values of a K x V matrix, by one-sided Jacobi rotations of its columns; V at most K or the other way round. */
export function singularValues(values, rows, columns) {
  const wide = columns > rows;
  const [m, n] = wide ? [columns, rows] : [rows, columns];
  const a = Array.from({ length: n }, (_, j) =>
    Float64Array.from({ length: m }, (_, i) => (wide ? values[j * columns + i] : values[i * columns + j])));
  for (let sweep = 0; sweep < 30; sweep++) {
    let rotated = false;
    for (let p = 0; p < n - 1; p++) {
      for (let q = p + 1; q < n; q++) rotated = rotate(a[p], a[q]) || rotated;
    }
    if (!rotated) break;
  }
  return a.map((column) => Math.hypot(...column)).sort((x, y) => y - x);
}

function rotate(x, y) {
  let xx = 0, yy = 0, xy = 0;
  for (let i = 0; i < x.length; i++) {
    xx += x[i] * x[i];
    yy += y[i] * y[i];
    xy += x[i] * y[i];
  }
  if (Math.abs(xy) <= 1e-10 * Math.sqrt(xx * yy) || xy === 0) return false;
  const zeta = (yy - xx) / (2 * xy);
  const t = Math.sign(zeta || 1) / (Math.abs(zeta) + Math.hypot(1, zeta));
  const c = 1 / Math.hypot(1, t), s = c * t;
  for (let i = 0; i < x.length; i++) {
    const left = x[i];
    x[i] = c * left - s * y[i];
    y[i] = s * left + c * y[i];
  }
  return true;
}

/** exp of the entropy of the singular values' shares; 0 of an empty matrix. */
export function effectiveRank(singular) {
  const total = singular.reduce((a, b) => a + b, 0);
  if (total === 0) return 0;
  const entropy = singular.reduce((sum, x) => (x > 0 ? sum - (x / total) * Math.log(x / total) : sum), 0);
  return Math.exp(entropy);
}

/** |a - b| / sqrt(|a|² + |b|²), 0 for two empty ones, and the cosine of the angle between them, 0 where one is empty. */
export function apart(a, b) {
  let aa = 0, bb = 0, ab = 0, dd = 0;
  for (let i = 0; i < a.length; i++) {
    aa += a[i] * a[i];
    bb += b[i] * b[i];
    ab += a[i] * b[i];
    dd += (a[i] - b[i]) ** 2;
  }
  return { distance: dd > 0 ? Math.sqrt(dd / (aa + bb)) : 0, cosine: aa > 0 && bb > 0 ? ab / Math.sqrt(aa * bb) : 0 };
}

/** What a state holds, by layer and head, as `GET /v1/states/{id}/memory` answers. */
export function memoryOf(state, layers) {
  return layers.map(({ kind, heads, head_size: size }, layer) => {
    const all = state[`${layer}.recurrent`], each = size * size;
    const parts = Array.from({ length: heads }, (_, h) => all.subarray(h * each, (h + 1) * each));
    const found = parts.map((part) => {
      const singular = singularValues(part, size, size);
      return { norm: Math.hypot(...singular), largest: singular[0], effective_rank: effectiveRank(singular) };
    });
    return { layer, kind, shape: [heads, size, size], norm: Math.hypot(...found.map((one) => one.norm)), heads: found };
  });
}

/** How far two states are apart, as `POST /v1/states/compare` answers. */
export function compared(a, b, layers) {
  return layers.map(({ kind, heads, head_size: size }, layer) => {
    const [x, y] = [a, b].map((state) => state[`${layer}.recurrent`]);
    const each = size * size;
    const cut = (all, h) => all.subarray(h * each, (h + 1) * each);
    return { layer, kind, heads: Array.from({ length: heads }, (_, h) => apart(cut(x, h), cut(y, h))) };
  });
}
