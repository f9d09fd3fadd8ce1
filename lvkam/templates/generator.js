// The generator in the page: out_o = sum_i Phi_io(z_i), layer after layer, as lvkam/splines.py and
// lvkam/univariate.py compute it, in double precision. Payload: lvkam/page_model.py.
"use strict";

function erf(x) {
  // 2/sqrt(pi) exp(-x^2) sum_n 2^n x^(2n+1) / (2n+1)!!: no term cancels another
  if (Math.abs(x) >= 6) return Math.sign(x);
  let term = x, sum = x;
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) sum += term *= (2 * x * x) / (2 * n + 1);
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const elu = (x) => (x > 0 ? x : Math.expm1(x));
const ACTIVATIONS = {
  relu: (x) => Math.max(0, x),
  leakyrelu: (x) => (x > 0 ? x : 0.01 * x),
  tanh: Math.tanh,
  sigmoid,
  swish: (x) => (x * Math.min(6, Math.max(0, x + 3))) / 6,
  gelu: (x) => 0.5 * x * (1 + erf(x * Math.SQRT1_2)),
  selu: (x) => 1.0507009873554805 * (x > 0 ? x : 1.6732632423543772 * Math.expm1(x)),
  silu: (x) => x * sigmoid(x),
  elu,
  celu: elu,
  none: () => 0,
};
const OUTPUT_ACTIVATIONS = { sigmoid, tanh: Math.tanh, none: (x) => x };

// B_0, ..., B_(K-1) at x, on the extended knots t.
const BASES = {
  "B-spline"(x, t, degree) {
    let basis = Array.from({ length: t.length - 1 }, (_, m) => (t[m] <= x && x < t[m + 1] ? 1 : 0));
    for (let d = 1; d <= degree; d++) {
      const weight = (m) => (x - t[m]) / (t[m + d] - t[m]);
      basis = Array.from({ length: basis.length - 1 }, (_, m) =>
        weight(m) * basis[m] + (1 - weight(m + 1)) * basis[m + 1]);
    }
    return basis;
  },
  RBF: (x, t, degree, width) => Array.from(t, (knot) => {
    const bump = Math.exp(-0.5 * ((x - knot) / width) ** 2);
    return bump > 1e-12 ? bump : 0;
  }),
  RSWAF: (x, t, degree, width) => Array.from(t, (knot) => 1 - Math.tanh((x - knot) / width) ** 2),
};

function decodeArray({ type, data }) {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  return new { float32: Float32Array, int16: Int16Array, uint8: Uint8Array }[type](bytes.buffer);
}

function makeLayer({ basis, degree, bandwidth, activation, inputs, outputs, grid, weight, scale }) {
  const knots = decodeArray(grid), W = decodeArray(weight), rowScale = scale && decodeArray(scale);
  const M = knots.length / inputs, rows = W.length / outputs / inputs; // rows: K basis functions and the base
  return (x) => {
    const out = new Float64Array(outputs);
    for (let i = 0; i < inputs; i++) {
      const t = knots.subarray(i * M, (i + 1) * M);
      const width = ((t[M - 1] - t[0]) / (M - 1)) * bandwidth;
      const features = BASES[basis](x[i], t, degree, width);
      features.push(ACTIVATIONS[activation](x[i]));
      for (let m = 0; m < rows; m++) {
        const row = i * rows + m, feature = features[m] * (rowScale ? rowScale[row] : 1);
        if (feature !== 0) for (let o = 0, w = row * outputs; o < outputs; o++, w++) out[o] += feature * W[w];
      }
    }
    return out;
  };
}

// z (Q numbers) -> data (D numbers), as `model.decode`.
function makeGenerator({ layers, output }) {
  const stack = layers.map(makeLayer);
  return (z) => stack.reduce((x, layer) => layer(x), z).map(OUTPUT_ACTIVATIONS[output]);
}

// u in [0, 1] -> z_q: linear between the quantiles shipped, which lie at equal steps of u between `low` and `high`.
function makeQuantile({ low, high, levels, table }) {
  const z = decodeArray(table);
  const quantile = (q, u) => {
    const place = Math.min(1, Math.max(0, (u - low) / (high - low))) * (levels - 1);
    const cell = Math.min(levels - 2, Math.floor(place)), within = place - cell;
    return (1 - within) * z[q * levels + cell] + within * z[q * levels + cell + 1];
  };
  return Object.assign(quantile, { table: z });
}

if (typeof module !== "undefined") module.exports = { makeGenerator, makeQuantile, decodeArray, erf };
