// Element-wise recurrences and the short causal convolution on a CPU; channels are the vector axis.
//   gated scan        h_t = f_t h_{t-1} + x_t              (real, or complex as interleaved pairs)
//   causal conv       y_t = sum_j w_j x_{t-j},  j = 0..W-1  (depthwise; x before the start comes from the state)
#include "vec.h"

struct Shape { int64_t docs, channels, reverse, width; };
constexpr int64_t BLOCK = 64;  // channels of one task; complex: 64 pairs

struct ScanOrder {  // row of the s-th token of a document in the order of the scan
  int64_t begin, end, reverse, channels;
  int64_t row(int64_t s) const { return (reverse ? end - 1 - s : begin + s) * channels; }
  int64_t size() const { return end - begin; }
};

template <class F> void for_each_block(const Shape& p, const int64_t* offsets, F body) {
  const int64_t blocks = (p.channels + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(dynamic) if (p.docs * blocks > 1)
  for (int64_t item = 0; item < p.docs * blocks; ++item) {
    const int64_t doc = item / blocks, c = item % blocks * BLOCK;
    body(doc, c, std::min(BLOCK, p.channels - c), ScanOrder{offsets[doc], offsets[doc + 1], p.reverse, p.channels});
  }
}

template <class T> struct Complex { T re, im; };
template <class T> inline Complex<T> operator*(Complex<T> a, Complex<T> b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
template <class T> inline Complex<T> operator+(Complex<T> a, Complex<T> b) { return {a.re + b.re, a.im + b.im}; }
template <class T> inline Complex<T> conj(Complex<T> a) { return {a.re, -a.im}; }
inline float conj(float a) { return a; }
inline double conj(double a) { return a; }

template <class E>
void scan_forward(const Shape& p, const int64_t* offsets, const E* x, const E* f, const E* state, E* h, E* final_state) {
  for_each_block(p, offsets, [&](int64_t doc, int64_t c, int64_t n, ScanOrder order) {
    E carry[BLOCK] = {};
    if (state) std::copy_n(state + doc * p.channels + c, n, carry);
    for (int64_t s = 0; s < order.size(); ++s) {
      const int64_t at = order.row(s) + c;
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) h[at + j] = carry[j] = f[at + j] * carry[j] + x[at + j];
    }
    std::copy_n(carry, n, final_state + doc * p.channels + c);
  });
}

// g_t = dh_t + conj(f_{t+1}) g_{t+1}     dx = g     df = g conj(h_{t-1})
template <class E>
void scan_backward(const Shape& p, const int64_t* offsets, const E* f, const E* h, const E* state, const E* grad_h,
                   const E* grad_state, E* grad_x, E* grad_f, E* grad_start) {
  for_each_block(p, offsets, [&](int64_t doc, int64_t c, int64_t n, ScanOrder order) {
    E carry[BLOCK] = {};
    const E zeros[BLOCK] = {};
    if (grad_state) std::copy_n(grad_state + doc * p.channels + c, n, carry);
    for (int64_t s = order.size() - 1; s >= 0; --s) {
      const int64_t at = order.row(s) + c;
      const E* before = s ? h + order.row(s - 1) + c : state ? state + doc * p.channels + c : zeros;
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) {
        const E g = carry[j] + grad_h[at + j];
        grad_x[at + j] = g;
        grad_f[at + j] = g * conj(before[j]);
        carry[j] = conj(f[at + j]) * g;
      }
    }
    std::copy_n(carry, n, grad_start + doc * p.channels + c);
  });
}

// weight [channels, width], w_0 meets the current token; state [docs, width-1, channels], oldest token first.
// `taps` is the weight of this block laid out [width][BLOCK] so that vectors run over channels.
template <class T> void load_taps(const Shape& p, const T* weight, int64_t c, int64_t n, T* taps) {
  for (int64_t j = 0; j < p.width; ++j)
    for (int64_t i = 0; i < n; ++i) taps[j * BLOCK + i] = weight[(c + i) * p.width + j];
}
// The input s tokens after the start, from the state where s is negative; null where there is none.
template <class T>
const T* input_at(const Shape& p, const T* x, const T* state, int64_t doc, int64_t c, ScanOrder order, int64_t s) {
  if (s >= 0) return x + order.row(s) + c;
  return state ? state + (doc * (p.width - 1) + p.width - 1 + s) * p.channels + c : nullptr;
}

template <class T>
void conv_forward(const Shape& p, const int64_t* offsets, const T* x, const T* weight, const T* state, T* y, T* final_state) {
  const int W = LANES<T>;
  for_each_block(p, offsets, [&](int64_t doc, int64_t c, int64_t n, ScanOrder order) {
    Buffer<T> taps(p.width * BLOCK);
    load_taps(p, weight, c, n, taps.at);
    for (int64_t s = 0; s < order.size(); ++s)
      for (int64_t i = 0; i < n; i += W) {
        const int part = std::min<int64_t>(W, n - i);
        Vec<T> sum{};
        for (int64_t j = 0; j < p.width; ++j)
          if (const T* in = input_at(p, x, state, doc, c, order, s - j))
            sum += load<T>(taps.at + j * BLOCK + i) * load_part<T>(in + i, part);
        store_part<T>(y + order.row(s) + c + i, sum, part);
      }
    for (int64_t j = 1; j < p.width; ++j) {
      const T* in = input_at(p, x, state, doc, c, order, order.size() - j);
      T* to = final_state + (doc * (p.width - 1) + p.width - 1 - j) * p.channels + c;
      if (in) std::copy_n(in, n, to);
      else std::fill_n(to, n, T(0));
    }
  });
}

// grad_weight [docs, channels, width]: one partial sum a document, added up by the caller in a fixed order.
template <class T>
void conv_backward(const Shape& p, const int64_t* offsets, const T* x, const T* weight, const T* state, const T* grad_y,
                   const T* grad_state, T* grad_x, T* grad_weight, T* grad_start) {
  const int W = LANES<T>;
  for_each_block(p, offsets, [&](int64_t doc, int64_t c, int64_t n, ScanOrder order) {
    Buffer<T> taps(p.width * BLOCK), sums(p.width * BLOCK);
    load_taps(p, weight, c, n, taps.at);
    // s runs over stored inputs, those of the state included: x_s met outputs s .. s+width-1 and the final state
    for (int64_t s = 1 - p.width; s < order.size(); ++s) {
      const T* in = input_at(p, x, state, doc, c, order, s);
      const int64_t kept = s - (order.size() - (p.width - 1));  // position in the final state, if it is there
      T* to = s >= 0 ? grad_x + order.row(s) + c : grad_start + (doc * (p.width - 1) + p.width - 1 + s) * p.channels + c;
      for (int64_t i = 0; i < n; i += W) {
        const int part = std::min<int64_t>(W, n - i);
        const Vec<T> value = in ? load_part<T>(in + i, part) : Vec<T>{};
        Vec<T> sum = kept < 0 ? Vec<T>{} : load_part<T>(grad_state + (doc * (p.width - 1) + kept) * p.channels + c + i, part);
        for (int64_t j = std::max<int64_t>(0, -s); j < p.width && s + j < order.size(); ++j) {
          const Vec<T> g = load_part<T>(grad_y + order.row(s + j) + c + i, part);
          T* total = sums.at + j * BLOCK + i;
          sum += load<T>(taps.at + j * BLOCK + i) * g;
          store<T>(total, load<T>(total) + value * g);
        }
        store_part<T>(to + i, sum, part);
      }
    }
    for (int64_t j = 0; j < p.width; ++j)
      for (int64_t i = 0; i < n; ++i) grad_weight[(doc * p.channels + c + i) * p.width + j] = sums.at[j * BLOCK + i];
  });
}

#define SCAN(E, NAME)                                                                                                   \
  extern "C" void scan_forward_##NAME(const Shape* p, const int64_t* o, const E* x, const E* f, const E* s, E* h, E* z) { \
    scan_forward<E>(*p, o, x, f, s, h, z);                                                                              \
  }                                                                                                                     \
  extern "C" void scan_backward_##NAME(const Shape* p, const int64_t* o, const E* f, const E* h, const E* s,            \
                                       const E* gh, const E* gs, E* gx, E* gf, E* g0) {                                 \
    scan_backward<E>(*p, o, f, h, s, gh, gs, gx, gf, g0);                                                               \
  }
SCAN(float, f32)
SCAN(double, f64)
SCAN(Complex<float>, c64)
SCAN(Complex<double>, c128)

#define CONV(T, NAME)                                                                                                   \
  extern "C" void conv_forward_##NAME(const Shape* p, const int64_t* o, const T* x, const T* w, const T* s, T* y, T* z) { \
    conv_forward<T>(*p, o, x, w, s, y, z);                                                                              \
  }                                                                                                                     \
  extern "C" void conv_backward_##NAME(const Shape* p, const int64_t* o, const T* x, const T* w, const T* s,            \
                                       const T* gy, const T* gs, T* gx, T* gw, T* g0) {                                 \
    conv_backward<T>(*p, o, x, w, s, gy, gs, gx, gw, g0);                                                               \
  }
CONV(float, f32)
CONV(double, f64)
