// Functions of one token's row on a CPU, in one pass over memory each way; PyTorch puts them together from several.
//   RMSNorm       y = x r w,  r = 1 / sqrt(mean x^2 + eps)     dx = r (g w - x r^2 mean(g w x))     dw = sum g x r
//   gated unit    y = act(a) b with [a, b] = x                 da = g b act'(a)     db = g act(a)
#include "vec.h"

struct RowShape { int64_t rows, width, activation, parts; };  // width: of a result row; parts: of the sums over rows

template <class T> inline T lanes_sum(Vec<T> x) {
  T total = 0;
  for (int j = 0; j < LANES<T>; ++j) total += x[j];
  return total;
}

template <class T>
void rms_forward(const RowShape& p, const T* x, const T* weight, double eps, T* y, T* scale) {
  const int W = LANES<T>;
#pragma omp parallel for schedule(static) if (p.rows * p.width > 65536)
  for (int64_t row = 0; row < p.rows; ++row) {
    const T* in = x + row * p.width;
    Vec<T> squares{}, more{};
    for (int64_t c = 0; c < p.width; c += 2 * W) {
      const Vec<T> a = load_part<T>(in + c, int(std::min<int64_t>(W, p.width - c)));
      squares += a * a;
      if (c + W < p.width) {
        const Vec<T> b = load_part<T>(in + c + W, int(std::min<int64_t>(W, p.width - c - W)));
        more += b * b;
      }
    }
    const T r = T(1) / std::sqrt(lanes_sum<T>(squares + more) / T(p.width) + T(eps));
    if (scale) scale[row] = r;
    for (int64_t c = 0; c < p.width; c += W) {
      const int part = int(std::min<int64_t>(W, p.width - c));
      Vec<T> value = load_part<T>(in + c, part) * r;
      if (weight) value *= load_part<T>(weight + c, part);
      store_part<T>(y + row * p.width + c, value, part);
    }
  }
}

// grad_weight [parts, width]: a partial sum for each part of the rows, added up by the caller in a fixed order.
template <class T>
void rms_backward(const RowShape& p, const T* x, const T* weight, const T* scale, const T* grad, T* grad_x, T* grad_weight) {
  const int W = LANES<T>;
  const int64_t each = (p.rows + p.parts - 1) / p.parts;
#pragma omp parallel for schedule(static) if (p.parts > 1)
  for (int64_t part_of_rows = 0; part_of_rows < p.parts; ++part_of_rows) {
    T* sums = grad_weight ? grad_weight + part_of_rows * p.width : nullptr;
    for (int64_t row = part_of_rows * each; row < std::min(p.rows, (part_of_rows + 1) * each); ++row) {
      const T *in = x + row * p.width, *g = grad + row * p.width;
      const T r = scale[row];
      Vec<T> products{};
      for (int64_t c = 0; c < p.width; c += W) {
        const int part = int(std::min<int64_t>(W, p.width - c));
        Vec<T> gw = load_part<T>(g + c, part);
        const Vec<T> value = load_part<T>(in + c, part);
        if (sums) store_part<T>(sums + c, load_part<T>(sums + c, part) + gw * value * r, part);
        if (weight) gw *= load_part<T>(weight + c, part);
        products += gw * value;
      }
      const T mean = lanes_sum<T>(products) * r * r / T(p.width);
      for (int64_t c = 0; c < p.width; c += W) {
        const int part = int(std::min<int64_t>(W, p.width - c));
        Vec<T> gw = load_part<T>(g + c, part);
        if (weight) gw *= load_part<T>(weight + c, part);
        store_part<T>(grad_x + row * p.width + c, (gw - load_part<T>(in + c, part) * mean) * r, part);
      }
    }
  }
}

template <class T> inline Vec<T> gate_of(Vec<T> x, int64_t kind, Vec<T>& slope) {
  Vec<T> up, down;
  if (kind == 0) { slope = splat<T>(1); return x; }
  sigmoids<T>(x, up, down);
  if (kind == 2) { slope = up * down; return up; }
  slope = up + x * up * down;
  return x * up;
}

template <class T>
void gated_forward(const RowShape& p, const T* x, T* y) {
  const int W = LANES<T>;
#pragma omp parallel for schedule(static) if (p.rows * p.width > 16384)
  for (int64_t row = 0; row < p.rows; ++row)
    for (int64_t c = 0; c < p.width; c += W) {
      const int part = int(std::min<int64_t>(W, p.width - c));
      const T* in = x + row * 2 * p.width + c;
      Vec<T> slope;
      const Vec<T> gate = gate_of<T>(load_part<T>(in, part), p.activation, slope);
      store_part<T>(y + row * p.width + c, gate * load_part<T>(in + p.width, part), part);
    }
}

template <class T>
void gated_backward(const RowShape& p, const T* x, const T* grad, T* grad_x) {
  const int W = LANES<T>;
#pragma omp parallel for schedule(static) if (p.rows * p.width > 16384)
  for (int64_t row = 0; row < p.rows; ++row)
    for (int64_t c = 0; c < p.width; c += W) {
      const int part = int(std::min<int64_t>(W, p.width - c));
      const T* in = x + row * 2 * p.width + c;
      T* out = grad_x + row * 2 * p.width + c;
      Vec<T> slope;
      const Vec<T> gate = gate_of<T>(load_part<T>(in, part), p.activation, slope);
      const Vec<T> g = load_part<T>(grad + row * p.width + c, part);
      store_part<T>(out, g * load_part<T>(in + p.width, part) * slope, part);
      store_part<T>(out + p.width, g * gate, part);
    }
}

#define ROWWISE(T, NAME)                                                                                                   \
  extern "C" void rms_forward_##NAME(const RowShape* p, double eps, const T* x, const T* w, T* y, T* r) {                  \
    rms_forward<T>(*p, x, w, eps, y, r);                                                                                   \
  }                                                                                                                        \
  extern "C" void rms_backward_##NAME(const RowShape* p, const T* x, const T* w, const T* r, const T* g, T* gx, T* gw) {   \
    rms_backward<T>(*p, x, w, r, g, gx, gw);                                                                               \
  }                                                                                                                        \
  extern "C" void gated_forward_##NAME(const RowShape* p, const T* x, T* y) { gated_forward<T>(*p, x, y); }                \
  extern "C" void gated_backward_##NAME(const RowShape* p, const T* x, const T* g, T* gx) { gated_backward<T>(*p, x, g, gx); }
ROWWISE(float, f32)
ROWWISE(double, f64)
