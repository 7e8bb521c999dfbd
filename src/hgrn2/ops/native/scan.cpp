// The gated outer-product scan on a CPU, one (document, head) at a time with the state in the first cache levels:
//   S_t = Diag(f_t) S_{t-1} + k_t v_t^T     o_t = q_t S_t
// Token by token, so it is exact for every gate: no quotient, no difference of running sums.
// mode 0 reads (q, k, v, log f); mode 1 is the HGRN2 core and reads the raw projections (x_q, x_f, x_i) and the lower bound g:
//   f = g + (1-g) sigma(x_f)   k = (1-g) sigma(-x_f)   q = act(x_q)   v = act(x_i)
// The backward recomputes states from checkpoints sqrt(T) tokens apart and carries G = dLoss/dS from the end:
//   G_t = f_{t+1} G_{t+1} + q_t do_t^T
//   dq = S_t do   dk = G v   dv = G^T k   df = rowsum(G * S_{t-1})
#include "vec.h"

struct Problem {
  int64_t docs, heads, K, V;
  int64_t mode, reverse, input_activation, output_activation;  // activations: 0 none, 1 silu, 2 sigmoid
  int64_t stride_q, stride_f, stride_k, stride_v;               // values from one token to the next
  double scale;
};

template <class T> struct Inputs { const T *q, *f, *k, *v, *lower_bound, *state; };

// One stretch of prepared tokens of one head: rows padded with zeros to whole vectors.
template <class T> struct Rows {
  int64_t KP, VP;
  Buffer<T> q, k, f, v;
  Rows(int64_t n, int64_t KP, int64_t VP) : KP(KP), VP(VP), q(n * KP), k(n * KP), f(n * KP), v(n * VP) {}
};

template <class T> inline Vec<T> activate(Vec<T> x, int64_t kind) {
  if (kind == 0) return x;
  Vec<T> p, m;
  sigmoids<T>(x, p, m);
  return kind == 1 ? x * p : p;
}
template <class T> inline Vec<T> activate_slope(Vec<T> x, int64_t kind) {
  if (kind == 0) return splat<T>(1);
  Vec<T> p, m;
  sigmoids<T>(x, p, m);
  return kind == 1 ? p + x * p * m : p * m;
}

struct Span {  // tokens of one document in the order of the scan
  int64_t begin, end, reverse;
  int64_t token(int64_t t) const { return reverse ? end - 1 - t : begin + t; }
  int64_t size() const { return end - begin; }
};

template <class T>
void prepare(const Problem& p, const Inputs<T>& in, Span span, int64_t head, int64_t first, int64_t n, Rows<T>& r,
             bool with_query = true) {
  const int W = LANES<T>;
  for (int64_t t = 0; t < n; ++t) {
    const int64_t token = span.token(first + t);
    const T* q = in.q + token * p.stride_q + head * p.K;
    const T* f = in.f + token * p.stride_f + head * p.K;
    const T* v = in.v + token * p.stride_v + head * p.V;
    for (int64_t c = 0; c < p.K; c += W) {
      const int part = std::min<int64_t>(W, p.K - c);
      Vec<T> xf = load_part<T>(f + c, part), key, gate;
      if (p.mode == 1) {
        Vec<T> g = in.lower_bound ? load_part<T>(in.lower_bound + head * p.K + c, part) : Vec<T>{}, up, down;
        sigmoids<T>(xf, up, down);
        gate = up + g * down;  // g + (1-g) up without the rounding of 1-g, which every token would repeat
        key = (T(1) - g) * down;
      } else {
        key = load_part<T>(in.k + token * p.stride_k + head * p.K + c, part);
        gate = exp_nonpositive(xf);
      }
      if (with_query) {
        Vec<T> query = activate<T>(load_part<T>(q + c, part), p.mode == 1 ? p.output_activation : 0) * T(p.scale);
        store_part<T>(r.q.at + t * r.KP + c, query, part);
      }
      store_part<T>(r.k.at + t * r.KP + c, key, part);
      store_part<T>(r.f.at + t * r.KP + c, gate, part);
    }
    for (int64_t c = 0; c < p.V; c += W) {
      const int part = std::min<int64_t>(W, p.V - c);
      store_part<T>(r.v.at + t * r.VP + c, activate<T>(load_part<T>(v + c, part), p.mode == 1 ? p.input_activation : 0), part);
    }
  }
}

// NV vectors of the value axis, NT tokens at a time: the state is read and written once for all of them. Gate, key and
// query are read once for all vectors, which the compiler cannot do by itself: S might be where they are.
template <class T, int NV, int NT>
inline void forward_tokens(T* S, int64_t ld, const Rows<T>& r, int64_t K, int64_t column, int64_t t, T* o) {
  const int W = LANES<T>;
  const T *f = r.f.at + t * r.KP, *k = r.k.at + t * r.KP, *q = r.q.at + t * r.KP;
  Vec<T> value[NT][NV], out[NT][NV] = {};
  for (int i = 0; i < NT; ++i)
    for (int j = 0; j < NV; ++j) value[i][j] = load<T>(r.v.at + (t + i) * r.VP + column + j * W);
  for (int64_t c = 0; c < K; ++c) {
    Vec<T> s[NV];
    for (int j = 0; j < NV; ++j) s[j] = load<T>(S + c * ld + column + j * W);
    for (int i = 0; i < NT; ++i) {
      const T gate = f[i * r.KP + c], key = k[i * r.KP + c], query = q[i * r.KP + c];
      for (int j = 0; j < NV; ++j) {
        s[j] = s[j] * gate + value[i][j] * key;
        out[i][j] += s[j] * query;
      }
    }
    for (int j = 0; j < NV; ++j) store<T>(S + c * ld + column + j * W, s[j]);
  }
  for (int i = 0; i < NT; ++i)
    for (int j = 0; j < NV; ++j) store<T>(o + (t + i) * r.VP + column + j * W, out[i][j]);
}

// As many blocks of NV vectors as fit, over n tokens; returns the column behind them.
template <class T, int NV, int NT>
int64_t forward_blocks(T* S, int64_t ld, const Rows<T>& r, int64_t K, int64_t column, int64_t n, T* o) {
  for (; column + NV * LANES<T> <= r.VP; column += NV * LANES<T>) {
    int64_t t = 0;
    for (; t + NT <= n; t += NT) forward_tokens<T, NV, NT>(S, ld, r, K, column, t, o);
    for (; t < n; ++t) forward_tokens<T, NV, 1>(S, ld, r, K, column, t, o);
  }
  return column;
}

template <class T>
void forward_one(const Problem& p, const Inputs<T>& in, int64_t doc, int64_t head, Span span, T* o, T* final_state) {
  const int W = LANES<T>;
  const int64_t KP = round_up(p.K, W), VP = round_up(p.V, W), stretch = std::min<int64_t>(32, std::max<int64_t>(span.size(), 1));
  Rows<T> rows(stretch, KP, VP);
  Buffer<T> out(stretch * VP), local(VP == p.V ? 0 : p.K * VP);
  const T* start = in.state ? in.state + (doc * p.heads + head) * p.K * p.V : nullptr;
  T* finish = final_state + (doc * p.heads + head) * p.K * p.V;
  T* S = VP == p.V ? finish : local.at;  // whole vectors: the result's own memory is the working state
  if (!start) std::memset(S, 0, p.K * VP * sizeof(T));
  else if (start != S)
    for (int64_t c = 0; c < p.K; ++c) std::memcpy(S + c * VP, start + c * p.V, p.V * sizeof(T));
  for (int64_t first = 0; first < span.size(); first += stretch) {
    const int64_t n = std::min(stretch, span.size() - first);
    prepare<T>(p, in, span, head, first, n, rows);
    int64_t column = forward_blocks<T, 4, 2>(S, VP, rows, p.K, 0, n, out.at);
    column = forward_blocks<T, 2, 2>(S, VP, rows, p.K, column, n, out.at);
    forward_blocks<T, 1, 4>(S, VP, rows, p.K, column, n, out.at);
    for (int64_t t = 0; t < n; ++t)
      std::memcpy(o + (span.token(first + t) * p.heads + head) * p.V, out.at + t * VP, p.V * sizeof(T));
  }
  if (S != finish)
    for (int64_t c = 0; c < p.K; ++c) std::memcpy(finish + c * p.V, S + c * VP, p.V * sizeof(T));
}

// The backward keeps states transposed, [VR][KP] with VR the values rounded up to whole groups of ROWS, so that q, k, f
// and their gradients run along the vectors. It works on blocks of ROWS values by NK vectors of keys, over a stretch of
// tokens: the block's state and its gradient then live in registers, and what is kept of them in the first cache level.
// Vectors of keys whose states advance side by side, so that no multiply-add waits for the one before it.
constexpr int CHAINS = VECTOR_BYTES == 64 ? 1 : 2;

template <class T> struct StretchGradients { T *q, *k, *f, *v; };  // [n][KP] three times, [n][VR/ROWS] vectors; summed into

// Advance a block's state over n tokens; `kept`, if any, receives the state before every token.
template <class T, int NK>
void advance(const Rows<T>& r, int64_t e0, int64_t c0, int64_t n, T* point, T* kept) {
  const int W = LANES<T>;
  Vec<T> S[ROWS<T>][NK];
  for (int e = 0; e < ROWS<T>; ++e)
    for (int j = 0; j < NK; ++j) S[e][j] = load<T>(point + (e0 + e) * r.KP + c0 + j * W);
  for (int64_t t = 0; t < n; ++t) {
    const T *f = r.f.at + t * r.KP + c0, *k = r.k.at + t * r.KP + c0, *v = r.v.at + t * r.VP + e0;
    Vec<T> gate[NK], key[NK];
    for (int j = 0; j < NK; ++j) gate[j] = load<T>(f + j * W), key[j] = load<T>(k + j * W);
    if (kept)
      for (int e = 0; e < ROWS<T>; ++e)
        for (int j = 0; j < NK; ++j) store<T>(kept + ((t * ROWS<T> + e) * NK + j) * W, S[e][j]);
    for (int e = 0; e < ROWS<T>; ++e)
      for (int j = 0; j < NK; ++j) S[e][j] = S[e][j] * gate[j] + key[j] * v[e];
  }
  if (!kept)
    for (int e = 0; e < ROWS<T>; ++e)
      for (int j = 0; j < NK; ++j) store<T>(point + (e0 + e) * r.KP + c0 + j * W, S[e][j]);
}

// The same block from the last token to the first; each G feeds all four gradients. `q` receives S_{t-1} do, which
// chain() completes: S_t do = f * (S_{t-1} do) + k (v . do). `v` receives half-folded sums of G^T k.
template <class T, int NK>
void backward_block(const Rows<T>& r, int64_t VR, int64_t e0, int64_t c0, int64_t n, const T* grad_o, const T* kept, T* G,
                    const StretchGradients<T>& g) {
  const int W = LANES<T>;
  Vec<T> x[ROWS<T>][NK];
  for (int e = 0; e < ROWS<T>; ++e)
    for (int j = 0; j < NK; ++j) x[e][j] = load<T>(G + (e0 + e) * r.KP + c0 + j * W);
  for (int64_t t = n - 1; t >= 0; --t) {
    const int64_t row = t * r.KP + c0;
    const T *v = r.v.at + t * r.VP + e0, *go = grad_o + t * r.VP + e0, *S = kept + t * ROWS<T> * NK * W;
    Vec<T> dv[ROWS<T>] = {};
    for (int j = 0; j < NK; ++j) {
      const Vec<T> q = load<T>(r.q.at + row + j * W), k = load<T>(r.k.at + row + j * W), f = load<T>(r.f.at + row + j * W);
      Vec<T> dq = load<T>(g.q + row + j * W), dk = load<T>(g.k + row + j * W), df = load<T>(g.f + row + j * W);
      for (int e = 0; e < ROWS<T>; ++e) {
        const Vec<T> s = load<T>(S + (e * NK + j) * W), y = x[e][j] + q * go[e];
        dq += s * go[e];
        df += s * y;
        dk += y * v[e];
        dv[e] += y * k;
        x[e][j] = y * f;
      }
      store<T>(g.q + row + j * W, dq), store<T>(g.k + row + j * W, dk), store<T>(g.f + row + j * W, df);
    }
    T* sums = g.v + (t * VR + e0) / ROWS<T> * W;
    store<T>(sums, load<T>(sums) + fold_rows<T>(dv));
  }
  for (int e = 0; e < ROWS<T>; ++e)
    for (int j = 0; j < NK; ++j) store<T>(G + (e0 + e) * r.KP + c0 + j * W, x[e][j]);
}

template <class T> struct Gradients { T *q, *f, *k, *v, *lower_bound, *state; };  // lower_bound: [docs, H*K] partial sums

// From gradients of (q, k, gate, v) to gradients of what the caller passed; rows of the outputs are contiguous.
template <class T>
void chain(const Problem& p, const Inputs<T>& in, const Gradients<T>& out, int64_t doc, int64_t head, int64_t token,
           const Rows<T>& r, int64_t VR, int64_t t, const T* grad_o, const StretchGradients<T>& g) {
  const int W = LANES<T>;
  Vec<T> products{};
  for (int64_t e = 0; e < p.V; e += W) {
    const int part = std::min<int64_t>(W, p.V - e);
    T dv[LANES<T>] = {};
    for (int64_t group = 0; group < part; group += ROWS<T>) {
      const Vec<T> sums = fold_rest(load<T>(g.v + (t * VR + e + group) / ROWS<T> * W));
      std::memcpy(dv + group, &sums, ROWS<T> * sizeof(T));
    }
    Vec<T> xv = load_part<T>(in.v + token * p.stride_v + head * p.V + e, part);
    products += load<T>(r.v.at + t * r.VP + e) * load<T>(grad_o + t * r.VP + e);
    store_part<T>(out.v + (token * p.heads + head) * p.V + e,
                  load<T>(dv) * activate_slope<T>(xv, p.mode == 1 ? p.input_activation : 0), part);
  }
  const T value_grad = sum<T>(products);  // v . do
  for (int64_t c = 0; c < p.K; c += W) {
    const int part = std::min<int64_t>(W, p.K - c);
    const int64_t channel = head * p.K + c, row = token * p.heads * p.K + channel, at = t * r.KP + c;
    Vec<T> gate = load<T>(r.f.at + at), dk = load<T>(g.k + at), df = load<T>(g.f + at);
    Vec<T> dq = (load<T>(g.q + at) * gate + load<T>(r.k.at + at) * value_grad) * T(p.scale);
    if (p.mode == 0) {
      store_part<T>(out.q + row, dq, part);
      store_part<T>(out.k + row, dk, part);
      store_part<T>(out.f + row, df * gate, part);
      continue;
    }
    Vec<T> xq = load_part<T>(in.q + token * p.stride_q + channel, part), xf = load_part<T>(in.f + token * p.stride_f + channel, part);
    Vec<T> lower_bound = in.lower_bound ? load_part<T>(in.lower_bound + channel, part) : Vec<T>{}, up, down;
    sigmoids<T>(xf, up, down);
    Vec<T> both = df - dk;
    store_part<T>(out.q + row, dq * activate_slope<T>(xq, p.output_activation), part);
    store_part<T>(out.f + row, (T(1) - lower_bound) * up * down * both, part);
    if (out.lower_bound) {
      T* sums = out.lower_bound + doc * p.heads * p.K + channel;
      store_part<T>(sums, load_part<T>(sums, part) + down * both, part);
    }
  }
}

// Tokens between checkpoints: few, so that a stretch stays in cache, unless that would keep more than 8 MiB of them.
template <class T> int64_t stretch_of(int64_t tokens, int64_t tile) {
  const int64_t few = sizeof(T) == 4 ? 16 : 8;
  if (tokens / few * tile * int64_t(sizeof(T)) <= (8 << 20)) return few;
  return std::max(few, round_up(int64_t(std::sqrt(double(tokens))), few));
}

template <class T>
void backward_one(const Problem& p, const Inputs<T>& in, int64_t doc, int64_t head, Span span, const T* grad_o,
                  const T* grad_state, const Gradients<T>& out) {
  const int W = LANES<T>;
  const int64_t KP = round_up(p.K, W), VP = round_up(p.V, W), VR = round_up(p.V, ROWS<T>), tile = VR * KP;
  const int64_t tokens = span.size(), stretch = stretch_of<T>(tokens, tile), count = (tokens + stretch - 1) / stretch;
  Rows<T> rows(stretch, KP, VP);
  Buffer<T> points((count + 1) * tile, false), kept(stretch * ROWS<T> * 2 * W, false), G(tile), go(stretch * VP);
  Buffer<T> work(stretch * (3 * KP + VR / ROWS<T> * W));
  const int64_t base = (doc * p.heads + head) * p.K * p.V;
  std::fill_n(points.at, tile, T(0));  // the padding of the first state is that of all
  for (int64_t c = 0; c < p.K; ++c)
    for (int64_t e = 0; e < p.V; ++e) {
      points.at[e * KP + c] = in.state ? in.state[base + c * p.V + e] : T(0);
      G.at[e * KP + c] = grad_state ? grad_state[base + c * p.V + e] : T(0);
    }
  for (int64_t i = 0; i + 1 < count; ++i) {
    T* point = points.at + (i + 1) * tile;
    prepare<T>(p, in, span, head, i * stretch, stretch, rows, false);
    std::memcpy(point, points.at + i * tile, tile * sizeof(T));
    for (int64_t e = 0; e < VR; e += ROWS<T>) {
      int64_t c = 0;
      for (; c + CHAINS * W <= KP; c += CHAINS * W) advance<T, CHAINS>(rows, e, c, stretch, point, nullptr);
      for (; c < KP; c += W) advance<T, 1>(rows, e, c, stretch, point, nullptr);
    }
  }
  StretchGradients<T> g{work.at, work.at + stretch * KP, work.at + 2 * stretch * KP, work.at + 3 * stretch * KP};
  for (int64_t i = count - 1; i >= 0; --i) {
    const int64_t first = i * stretch, n = std::min(stretch, tokens - first);
    prepare<T>(p, in, span, head, first, n, rows);
    std::memset(work.at, 0, stretch * (3 * KP + VR / ROWS<T> * W) * sizeof(T));
    for (int64_t t = 0; t < n; ++t)
      std::memcpy(go.at + t * VP, grad_o + (span.token(first + t) * p.heads + head) * p.V, p.V * sizeof(T));
    for (int64_t e = 0; e < VR; e += ROWS<T>) {
      int64_t c = 0;
      for (; c + 2 * W <= KP; c += 2 * W) {
        advance<T, 2>(rows, e, c, n, points.at + i * tile, kept.at);
        backward_block<T, 2>(rows, VR, e, c, n, go.at, kept.at, G.at, g);
      }
      for (; c < KP; c += W) {
        advance<T, 1>(rows, e, c, n, points.at + i * tile, kept.at);
        backward_block<T, 1>(rows, VR, e, c, n, go.at, kept.at, G.at, g);
      }
    }
    for (int64_t t = 0; t < n; ++t) chain<T>(p, in, out, doc, head, span.token(first + t), rows, VR, t, go.at, g);
  }
  if (out.state)
    for (int64_t c = 0; c < p.K; ++c)
      for (int64_t e = 0; e < p.V; ++e) out.state[base + c * p.V + e] = G.at[e * KP + c];
}

template <class T>
void forward_all(const Problem& p, const int64_t* offsets, Inputs<T> in, T* o, T* final_state) {
#pragma omp parallel for schedule(dynamic) if (p.docs * p.heads > 1)
  for (int64_t item = 0; item < p.docs * p.heads; ++item) {
    const int64_t doc = item / p.heads;
    forward_one<T>(p, in, doc, item % p.heads, Span{offsets[doc], offsets[doc + 1], p.reverse}, o, final_state);
  }
}
template <class T>
void backward_all(const Problem& p, const int64_t* offsets, Inputs<T> in, const T* grad_o, const T* grad_state, Gradients<T> out) {
#pragma omp parallel for schedule(dynamic) if (p.docs * p.heads > 1)
  for (int64_t item = 0; item < p.docs * p.heads; ++item) {
    const int64_t doc = item / p.heads;
    backward_one<T>(p, in, doc, item % p.heads, Span{offsets[doc], offsets[doc + 1], p.reverse}, grad_o, grad_state, out);
  }
}

#define ENTRY(T, NAME)                                                                                             \
  extern "C" void outer_forward_##NAME(const Problem* p, const int64_t* offsets, const Inputs<T>* in, T* o, T* s) { \
    forward_all<T>(*p, offsets, *in, o, s);                                                                        \
  }                                                                                                                \
  extern "C" void outer_backward_##NAME(const Problem* p, const int64_t* offsets, const Inputs<T>* in, const T* go, \
                                        const T* gs, const Gradients<T>* out) {                                    \
    backward_all<T>(*p, offsets, *in, go, gs, *out);                                                               \
  }
ENTRY(float, f32)
ENTRY(double, f64)
