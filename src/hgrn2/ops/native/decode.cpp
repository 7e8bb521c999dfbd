// One token of a whole HGRN2 language model for one sequence on a CPU: no call of PyTorch between two products.
//   x = embedding row;  per layer  x += mixer(norm x), x += glu(norm x);  logits = head(norm x)
// A product reads each weight once, which is what a token costs; weights are float32, or int8 with a scale for each row.
#include <vector>
#include "vec.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

typedef Vec<float> F;
constexpr int W = LANES<float>;

struct Matrix { const void* weight; const uint16_t* scale; int64_t rows, columns; };  // scale: bfloat16; null: float32
struct RowNorm { const float *weight, *bias; int64_t kind, groups; double eps; };     // kind 0 RMS, 1 LayerNorm
struct Layer {
  RowNorm before, inner, middle;
  Matrix in, out, up, down;                     // projections of the mixer, the gated unit's
  const float *taps, *lower_bound;              // [3D, conv_width] or null; [D] or null
  float *state, *past;                          // [heads, n, n]; [conv_width - 1, 3D], oldest first, or null
};
struct Net {
  int64_t layers, width, heads, hidden, conv_width, input_activation, output_activation, glu_activation;
  double scale, embedding_scale;
  Matrix embedding, head;
  RowNorm last;
};

static inline float bfloat(uint16_t x) {
  uint32_t bits = uint32_t(x) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
static inline float total(F x) {
  float sum = 0;
  for (int j = 0; j < W; ++j) sum += x[j];
  return sum;
}
static inline F widened(const int8_t* p) {
#if defined(__AVX512F__)
  __m512 y = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  F x; std::memcpy(&x, &y, sizeof x); return x;
#elif defined(__AVX2__)
  __m256 y = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  F x; std::memcpy(&x, &y, sizeof x); return x;
#else
  F x;
  for (int j = 0; j < W; ++j) x[j] = float(p[j]);
  return x;
#endif
}
static inline F weights_at(const float* p) { return load<float>(p); }
static inline F weights_at(const int8_t* p) { return widened(p); }

// Four rows at once, so that x is read once for them and no sum waits for the one before it.
template <class E> static void rows_of(const E* weight, const uint16_t* scale, int64_t columns, int64_t first, int64_t end, const float* x, float* y) {
  int64_t r = first;
  const int64_t whole = columns / W * W;
  for (; r + 4 <= end; r += 4) {
    const E *a = weight + r * columns, *b = a + columns, *c = b + columns, *d = c + columns;
    F s0{}, s1{}, s2{}, s3{};
    for (int64_t k = 0; k < whole; k += W) {
      const F v = load<float>(x + k);
      s0 += weights_at(a + k) * v, s1 += weights_at(b + k) * v, s2 += weights_at(c + k) * v, s3 += weights_at(d + k) * v;
    }
    float t[4] = {total(s0), total(s1), total(s2), total(s3)};
    for (int64_t k = whole; k < columns; ++k)
      t[0] += float(a[k]) * x[k], t[1] += float(b[k]) * x[k], t[2] += float(c[k]) * x[k], t[3] += float(d[k]) * x[k];
    for (int i = 0; i < 4; ++i) y[r + i] = scale ? t[i] * bfloat(scale[r + i]) : t[i];
  }
  for (; r < end; ++r) {
    const E* a = weight + r * columns;
    F s{};
    for (int64_t k = 0; k < whole; k += W) s += weights_at(a + k) * load<float>(x + k);
    float t = total(s);
    for (int64_t k = whole; k < columns; ++k) t += float(a[k]) * x[k];
    y[r] = scale ? t * bfloat(scale[r]) : t;
  }
}
static void product(const Matrix& m, const float* x, float* y) {
  constexpr int64_t PART = 64;  // rows: blocks of fixed size, so that sums do not depend on the number of threads
  const int64_t parts = (m.rows + PART - 1) / PART;
#pragma omp parallel for schedule(static) if (m.rows * m.columns > 65536)
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = part * PART, end = std::min(m.rows, first + PART);
    if (m.scale) rows_of(static_cast<const int8_t*>(m.weight), m.scale, m.columns, first, end, x, y);
    else rows_of(static_cast<const float*>(m.weight), nullptr, m.columns, first, end, x, y);
  }
}

static void normalise(const RowNorm& n, const float* x, int64_t width, float* y) {
  const int64_t each = width / n.groups;
  for (int64_t g = 0; g < n.groups; ++g) {
    const float* in = x + g * each;
    double sum = 0, squares = 0;
    if (n.kind == 1)
      for (int64_t c = 0; c < each; ++c) sum += in[c];
    const float mean = float(sum / each);
    for (int64_t c = 0; c < each; ++c) squares += double(in[c] - mean) * (in[c] - mean);
    const float r = float(1 / std::sqrt(squares / each + n.eps));
    for (int64_t c = 0; c < each; ++c) {
      const int64_t at = g * each + c;
      y[at] = (in[c] - mean) * r * (n.weight ? n.weight[at] : 1.0f) + (n.bias ? n.bias[at] : 0.0f);
    }
  }
}

// act(x) of a row in place: 0 none, 1 silu, 2 sigmoid.
static void activate_row(float* x, int64_t width, int64_t kind) {
  if (kind == 0) return;
  for (int64_t c = 0; c < width; c += W) {
    const int part = int(std::min<int64_t>(W, width - c));
    F value = load_part<float>(x + c, part), up, down;
    sigmoids<float>(value, up, down);
    store_part<float>(x + c, kind == 1 ? value * up : up, part);
  }
}

static void convolve(const Layer& l, int64_t taps, int64_t channels, float* x) {
  for (int64_t c = 0; c < channels; ++c) {
    const float now = x[c];
    float sum = l.taps[c * taps] * now;
    for (int64_t j = 1; j < taps; ++j) sum += l.taps[c * taps + j] * l.past[(taps - 1 - j) * channels + c];
    for (int64_t j = 0; j + 2 < taps; ++j) l.past[j * channels + c] = l.past[(j + 1) * channels + c];
    if (taps > 1) l.past[(taps - 2) * channels + c] = now;
    x[c] = sum;
  }
}

// S = Diag(f) S + k v^T and y = q S of every head; `raw` holds i, o and f of the token, y may be i.
static void scan_step(const Net& n, const Layer& l, float* raw, float* y) {
  const int64_t size = n.width / n.heads, D = n.width;
  activate_row(raw, D, n.input_activation);
  activate_row(raw + D, D, n.output_activation);
  float *key = raw + 2 * D;  // the gate's logits become keys; gates stand beside them
  std::vector<float> gates(D);
  for (int64_t c = 0; c < D; c += W) {
    const int part = int(std::min<int64_t>(W, D - c));
    F g = l.lower_bound ? load_part<float>(l.lower_bound + c, part) : F{}, up, down;
    sigmoids<float>(load_part<float>(key + c, part), up, down);
    store_part<float>(gates.data() + c, up + g * down, part);
    store_part<float>(key + c, (1.0f - g) * down, part);
  }
#pragma omp parallel for schedule(static) if (D * size > 131072)
  for (int64_t h = 0; h < n.heads; ++h) {
    const float *v = raw + h * size, *q = raw + D + h * size, *k = key + h * size, *f = gates.data() + h * size;
    float *S = l.state + h * size * size, *o = y + h * size;
    float out[1024] = {};
    for (int64_t c = 0; c < size; ++c) {
      float* row = S + c * size;
      const float query = q[c] * float(n.scale);
#pragma omp simd
      for (int64_t e = 0; e < size; ++e) {
        row[e] = row[e] * f[c] + v[e] * k[c];
        out[e] += row[e] * query;
      }
    }
    std::memcpy(o, out, size * sizeof(float));
  }
}

static void layer_step(const Net& n, const Layer& l, float* x, float* a, float* b) {
  const int64_t D = n.width;
  normalise(l.before, x, D, a);
  product(l.in, a, b);
  if (l.taps) convolve(l, n.conv_width, 3 * D, b);
  scan_step(n, l, b, a);
  normalise(l.inner, a, D, a);
  product(l.out, a, b);
  for (int64_t c = 0; c < D; ++c) x[c] += b[c];
  if (!n.hidden) return;
  normalise(l.middle, x, D, a);
  product(l.up, a, b);
  activate_row(b, n.hidden, n.glu_activation);
  for (int64_t c = 0; c < n.hidden; ++c) b[c] *= b[n.hidden + c];
  product(l.down, b, a);
  for (int64_t c = 0; c < D; ++c) x[c] += a[c];
}

extern "C" void decode_token_f32(const Net* net, const Layer* layers, int64_t token, float* logits) {
  const Net& n = *net;
  const int64_t D = n.width;
  std::vector<float> x(D), a(std::max(D, n.hidden)), b(std::max(3 * D, 2 * n.hidden));
  const Matrix& e = n.embedding;
  for (int64_t c = 0; c < D; ++c) {
    const int64_t at = token * D + c;
    const float value = e.scale ? float(static_cast<const int8_t*>(e.weight)[at]) * bfloat(e.scale[token])
                                : static_cast<const float*>(e.weight)[at];
    x[c] = value * float(n.embedding_scale);
  }
  for (int64_t i = 0; i < n.layers; ++i) layer_step(n, layers[i], x.data(), a.data(), b.data());
  normalise(n.last, x.data(), D, a.data());
  product(n.head, a.data(), logits);
}
