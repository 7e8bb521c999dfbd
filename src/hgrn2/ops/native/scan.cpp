// The gated outer-product scan on a CPU, one (document, head) at a time with the state in the first cache levels:
//   S_t = Diag(f_t) S_{t-1} + k_t v_t^T     o_t = q_t S_t
// Token by token, so it is exact for every gate: no quotient, no difference of running sums.
// mode 0 reads (q, k, v, log f); mode 1 is the HGRN2 core and reads the raw projections (x_q, x_f, x_i) and the bound g:
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

template <class T> struct Inputs { const T *q, *f, *k, *v, *bound, *state; };

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
void prepare(const Problem& p, const Inputs<T>& in, Span span, int64_t head, int64_t first, int64_t n, Rows<T>& r) {
  const int W = LANES<T>;
  for (int64_t t = 0; t < n; ++t) {
    const int64_t token = span.token(first + t);
    const T* q = in.q + token * p.stride_q + head * p.K;
    const T* f = in.f + token * p.stride_f + head * p.K;
    const T* v = in.v + token * p.stride_v + head * p.V;
    for (int64_t c = 0; c < p.K; c += W) {
      const int part = std::min<int64_t>(W, p.K - c);
      Vec<T> xq = load_part<T>(q + c, part), xf = load_part<T>(f + c, part), key, gate;
      if (p.mode == 1) {
        Vec<T> g = in.bound ? load_part<T>(in.bound + head * p.K + c, part) : Vec<T>{}, up, down;
        sigmoids<T>(xf, up, down);
        gate = g + (T(1) - g) * up;
        key = (T(1) - g) * down;
      } else {
        key = load_part<T>(in.k + token * p.stride_k + head * p.K + c, part);
        gate = exp_nonpositive(xf);
      }
      Vec<T> query = activate<T>(xq, p.mode == 1 ? p.output_activation : 0) * T(p.scale);
      T* at = r.q.at + t * r.KP + c;
      store_part<T>(at, query, part);
      store_part<T>(r.k.at + t * r.KP + c, key, part);
      store_part<T>(r.f.at + t * r.KP + c, gate, part);
    }
    for (int64_t c = 0; c < p.V; c += W) {
      const int part = std::min<int64_t>(W, p.V - c);
      store_part<T>(r.v.at + t * r.VP + c, activate<T>(load_part<T>(v + c, part), p.mode == 1 ? p.input_activation : 0), part);
    }
  }
}

// NV vectors of the value axis, tokens two at a time: the state is read and written once for both.
template <class T, int NV>
void forward_block(T* S, int64_t ld, const Rows<T>& r, int64_t K, int64_t column, int64_t n, T* o) {
  const int W = LANES<T>;
  int64_t t = 0;
  for (; t + 2 <= n; t += 2) {
    const T *f0 = r.f.at + t * r.KP, *k0 = r.k.at + t * r.KP, *q0 = r.q.at + t * r.KP;
    const T *f1 = f0 + r.KP, *k1 = k0 + r.KP, *q1 = q0 + r.KP;
    Vec<T> v0[NV], v1[NV], o0[NV], o1[NV];
    for (int j = 0; j < NV; ++j) {
      v0[j] = load<T>(r.v.at + t * r.VP + column + j * W);
      v1[j] = load<T>(r.v.at + (t + 1) * r.VP + column + j * W);
      o0[j] = o1[j] = Vec<T>{};
    }
    for (int64_t c = 0; c < K; ++c)
      for (int j = 0; j < NV; ++j) {
        Vec<T> s = load<T>(S + c * ld + column + j * W);
        s = s * f0[c] + v0[j] * k0[c];
        o0[j] += s * q0[c];
        s = s * f1[c] + v1[j] * k1[c];
        o1[j] += s * q1[c];
        store<T>(S + c * ld + column + j * W, s);
      }
    for (int j = 0; j < NV; ++j) {
      store<T>(o + t * r.VP + column + j * W, o0[j]);
      store<T>(o + (t + 1) * r.VP + column + j * W, o1[j]);
    }
  }
  for (; t < n; ++t) {
    const T *f0 = r.f.at + t * r.KP, *k0 = r.k.at + t * r.KP, *q0 = r.q.at + t * r.KP;
    Vec<T> v0[NV], o0[NV];
    for (int j = 0; j < NV; ++j) v0[j] = load<T>(r.v.at + t * r.VP + column + j * W), o0[j] = Vec<T>{};
    for (int64_t c = 0; c < K; ++c)
      for (int j = 0; j < NV; ++j) {
        Vec<T> s = load<T>(S + c * ld + column + j * W);
        s = s * f0[c] + v0[j] * k0[c];
        o0[j] += s * q0[c];
        store<T>(S + c * ld + column + j * W, s);
      }
    for (int j = 0; j < NV; ++j) store<T>(o + t * r.VP + column + j * W, o0[j]);
  }
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
    int64_t column = 0;
    for (; column + 4 * W <= VP; column += 4 * W) forward_block<T, 4>(S, VP, rows, p.K, column, n, out.at);
    for (; column < VP; column += W) forward_block<T, 1>(S, VP, rows, p.K, column, n, out.at);
    for (int64_t t = 0; t < n; ++t)
      std::memcpy(o + (span.token(first + t) * p.heads + head) * p.V, out.at + t * VP, p.V * sizeof(T));
  }
  if (S != finish)
    for (int64_t c = 0; c < p.K; ++c) std::memcpy(finish + c * p.V, S + c * VP, p.V * sizeof(T));
}

// Advance the transposed state [V][KP] over n tokens; with `keep`, write every token's state to its own slot.
template <class T> void advance(const Rows<T>& r, int64_t V, int64_t n, const T* from, T* to, bool keep) {
  const int W = LANES<T>;
  for (int64_t t = 0; t < n; ++t) {
    T* next = keep ? to + t * V * r.KP : to;
    const T *f = r.f.at + t * r.KP, *k = r.k.at + t * r.KP, *v = r.v.at + t * r.VP;
    for (int64_t c = 0; c < r.KP; c += W) {
      Vec<T> gate = load<T>(f + c), key = load<T>(k + c);
      for (int64_t e = 0; e < V; ++e)
        store<T>(next + e * r.KP + c, load<T>(from + e * r.KP + c) * gate + key * v[e]);
    }
    from = next;
  }
}

template <class T> struct TokenGradient { T *q, *k, *f, *v; };  // q, k, f: KP values; v: V values, summed into

// One token, NK vectors of the key axis: G is read and written once and feeds all four gradients.
template <class T, int NK>
void backward_block(T* G, const T* now, const T* before, int64_t ld, const T* q, const T* k, const T* f, const T* v,
                    const T* grad_o, int64_t V, int64_t c0, TokenGradient<T> g) {
  const int W = LANES<T>;
  Vec<T> dq[NK], dk[NK], df[NK], qv[NK], kv[NK], fv[NK];
  for (int j = 0; j < NK; ++j) {
    dq[j] = dk[j] = df[j] = Vec<T>{};
    qv[j] = load<T>(q + c0 + j * W), kv[j] = load<T>(k + c0 + j * W), fv[j] = load<T>(f + c0 + j * W);
  }
  for (int64_t e = 0; e < V; ++e) {
    Vec<T> dv{};
    for (int j = 0; j < NK; ++j) {
      const int64_t at = e * ld + c0 + j * W;
      Vec<T> x = load<T>(G + at) + qv[j] * grad_o[e];
      dq[j] += load<T>(now + at) * grad_o[e];
      dk[j] += x * v[e];
      df[j] += x * load<T>(before + at);
      dv += x * kv[j];
      store<T>(G + at, x * fv[j]);
    }
    g.v[e] += sum<T>(dv);
  }
  for (int j = 0; j < NK; ++j) {
    store<T>(g.q + c0 + j * W, dq[j]);
    store<T>(g.k + c0 + j * W, dk[j]);
    store<T>(g.f + c0 + j * W, df[j]);
  }
}

template <class T> struct Gradients { T *q, *f, *k, *v, *bound, *state; };  // bound: [docs, H*K] partial sums

// From gradients of (q, k, gate, v) to gradients of what the caller passed; rows of the outputs are contiguous.
template <class T>
void chain(const Problem& p, const Inputs<T>& in, const Gradients<T>& out, int64_t doc, int64_t head, int64_t token,
           const Rows<T>& r, int64_t t, TokenGradient<T> g) {
  const int W = LANES<T>;
  for (int64_t c = 0; c < p.K; c += W) {
    const int part = std::min<int64_t>(W, p.K - c);
    const int64_t channel = head * p.K + c, row = token * p.heads * p.K + channel;
    Vec<T> dq = load<T>(g.q + c) * T(p.scale), dk = load<T>(g.k + c), df = load<T>(g.f + c), gate = load<T>(r.f.at + t * r.KP + c);
    if (p.mode == 0) {
      store_part<T>(out.q + row, dq, part);
      store_part<T>(out.k + row, dk, part);
      store_part<T>(out.f + row, df * gate, part);
      continue;
    }
    Vec<T> xq = load_part<T>(in.q + token * p.stride_q + channel, part), xf = load_part<T>(in.f + token * p.stride_f + channel, part);
    Vec<T> bound = in.bound ? load_part<T>(in.bound + channel, part) : Vec<T>{}, up, down;
    sigmoids<T>(xf, up, down);
    Vec<T> both = df - dk;
    store_part<T>(out.q + row, dq * activate_slope<T>(xq, p.output_activation), part);
    store_part<T>(out.f + row, (T(1) - bound) * up * down * both, part);
    if (out.bound) {
      T* sums = out.bound + doc * p.heads * p.K + channel;
      store_part<T>(sums, load_part<T>(sums, part) + down * both, part);
    }
  }
  for (int64_t e = 0; e < p.V; e += W) {
    const int part = std::min<int64_t>(W, p.V - e);
    Vec<T> xv = load_part<T>(in.v + token * p.stride_v + head * p.V + e, part);
    store_part<T>(out.v + (token * p.heads + head) * p.V + e,
                  load<T>(g.v + e) * activate_slope<T>(xv, p.mode == 1 ? p.input_activation : 0), part);
  }
}

template <class T>
void backward_one(const Problem& p, const Inputs<T>& in, int64_t doc, int64_t head, Span span, const T* grad_o,
                  const T* grad_state, const Gradients<T>& out) {
  const int W = LANES<T>;
  const int64_t KP = round_up(p.K, W), VP = round_up(p.V, W), T_ = span.size(), tile = p.V * KP;
  const int64_t stretch = std::max<int64_t>(16, round_up(int64_t(std::sqrt(double(T_))), 16));
  const int64_t count = (T_ + stretch - 1) / stretch;
  Rows<T> rows(stretch, KP, VP);
  Buffer<T> points((count + 1) * tile), states(stretch * tile), G(tile), work(3 * KP + VP), go(VP);
  const int64_t base = (doc * p.heads + head) * p.K * p.V;
  for (int64_t c = 0; c < p.K; ++c)
    for (int64_t e = 0; e < p.V; ++e) {
      points.at[e * KP + c] = in.state ? in.state[base + c * p.V + e] : T(0);
      G.at[e * KP + c] = grad_state ? grad_state[base + c * p.V + e] : T(0);
    }
  for (int64_t i = 0; i + 1 < count; ++i) {
    prepare<T>(p, in, span, head, i * stretch, stretch, rows);
    std::memcpy(points.at + (i + 1) * tile, points.at + i * tile, tile * sizeof(T));
    advance<T>(rows, p.V, stretch, points.at + (i + 1) * tile, points.at + (i + 1) * tile, false);
  }
  TokenGradient<T> g{work.at, work.at + KP, work.at + 2 * KP, work.at + 3 * KP};
  for (int64_t i = count - 1; i >= 0; --i) {
    const int64_t first = i * stretch, n = std::min(stretch, T_ - first);
    prepare<T>(p, in, span, head, first, n, rows);
    advance<T>(rows, p.V, n, points.at + i * tile, states.at, true);
    for (int64_t t = n - 1; t >= 0; --t) {
      const int64_t token = span.token(first + t);
      std::memcpy(go.at, grad_o + (token * p.heads + head) * p.V, p.V * sizeof(T));
      std::memset(g.v, 0, VP * sizeof(T));
      const T *now = states.at + t * tile, *before = t ? now - tile : points.at + i * tile;
      const T *q = rows.q.at + t * KP, *k = rows.k.at + t * KP, *f = rows.f.at + t * KP, *v = rows.v.at + t * VP;
      int64_t c = 0;
      for (; c + 4 * W <= KP; c += 4 * W) backward_block<T, 4>(G.at, now, before, KP, q, k, f, v, go.at, p.V, c, g);
      for (; c + 2 * W <= KP; c += 2 * W) backward_block<T, 2>(G.at, now, before, KP, q, k, f, v, go.at, p.V, c, g);
      for (; c < KP; c += W) backward_block<T, 1>(G.at, now, before, KP, q, k, f, v, go.at, p.V, c, g);
      chain<T>(p, in, out, doc, head, token, rows, t, g);
    }
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
