// Short vectors of float or double through the compiler's vector extension, as wide as this processor's registers: GCC
// splits wider ones through memory, which made every kernel ten times slower on AVX2 than on AVX-512. One source serves
// AVX-512 (64 bytes), AVX and AVX2 (32) and NEON, SSE and plain C++ (16).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

typedef float vec_f32 __attribute__((vector_size(VECTOR_BYTES)));
typedef double vec_f64 __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t vec_i32 __attribute__((vector_size(VECTOR_BYTES)));

template <class T> struct Simd;
template <> struct Simd<float> { typedef vec_f32 vec; };
template <> struct Simd<double> { typedef vec_f64 vec; };
template <class T> using Vec = typename Simd<T>::vec;
template <class T> constexpr int LANES = VECTOR_BYTES / sizeof(T);

template <class T> inline Vec<T> load(const T* p) { Vec<T> x; std::memcpy(&x, p, VECTOR_BYTES); return x; }
template <class T> inline void store(T* p, Vec<T> x) { std::memcpy(p, &x, VECTOR_BYTES); }
template <class T> inline Vec<T> splat(T x) { return Vec<T>{} + x; }

#if defined(__clang__) || __GNUC__ >= 12
#define PICK(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define PICK(x, y, ...) __builtin_shuffle(x, y, decltype(x < y){__VA_ARGS__})
#endif

// fold(x, y): sums of neighbours. What fold_rows() leaves of ROWS vectors, fold_rest() sums up: its first lanes hold the
// sums. On AVX a fold stays inside 16-byte halves, between which moves are slow, and fold_rest() adds the halves.
#if VECTOR_BYTES == 64
inline vec_f32 fold(vec_f32 x, vec_f32 y) {
  return PICK(x, y, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         PICK(x, y, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
inline vec_f64 fold(vec_f64 x, vec_f64 y) {
  return PICK(x, y, 0, 2, 4, 6, 8, 10, 12, 14) + PICK(x, y, 1, 3, 5, 7, 9, 11, 13, 15);
}
inline vec_f32 fold_rest(vec_f32 x) { x = fold(x, x); return fold(x, x); }
inline vec_f64 fold_rest(vec_f64 x) { return fold(x, x); }
#elif VECTOR_BYTES == 32
inline vec_f32 fold(vec_f32 x, vec_f32 y) { return PICK(x, y, 0, 2, 8, 10, 4, 6, 12, 14) + PICK(x, y, 1, 3, 9, 11, 5, 7, 13, 15); }
inline vec_f64 fold(vec_f64 x, vec_f64 y) { return PICK(x, y, 0, 2, 4, 6) + PICK(x, y, 1, 3, 5, 7); }
inline vec_f32 fold_rest(vec_f32 x) { return x + PICK(x, x, 4, 5, 6, 7, 0, 1, 2, 3); }
inline vec_f64 fold_rest(vec_f64 x) { return x; }
#else
inline vec_f32 fold(vec_f32 x, vec_f32 y) { return PICK(x, y, 0, 2, 4, 6) + PICK(x, y, 1, 3, 5, 7); }
inline vec_f64 fold(vec_f64 x, vec_f64 y) { return PICK(x, y, 0, 2) + PICK(x, y, 1, 3); }
inline vec_f32 fold_rest(vec_f32 x) { return x; }
inline vec_f64 fold_rest(vec_f64 x) { return x; }
#endif
// Rows whose sums one vector can hold after folding.
template <class T> constexpr int ROWS = LANES<T> < 4 ? LANES<T> : 4;
template <class T> inline Vec<T> fold_rows(const Vec<T>* x) {
  if constexpr (ROWS<T> == 4) return fold(fold(x[0], x[1]), fold(x[2], x[3]));
  else return fold(x[0], x[1]);
}
template <class T> inline T sum(Vec<T> x) {
  const Vec<T> same[] = {x, x, x, x};
  return fold_rest(fold_rows<T>(same))[0];
}

// exp(x) for x <= 0, relative error below 2e-7 in float32: exp(x) = 2^n exp(r), |r| <= ln2/2, Taylor to r^7.
inline vec_f32 exp_nonpositive(vec_f32 x) {
  vec_f32 y = x < -87.0f ? splat<float>(-87.0f) : x;
  vec_f32 shifted = y * 1.44269504088896341f - 0.5f;
  vec_i32 n = __builtin_convertvector(shifted, vec_i32);  // truncation of a negative number: rounds y/ln2 to nearest
  vec_f32 nf = __builtin_convertvector(n, vec_f32);
  vec_f32 r = (y - nf * 0.693359375f) - nf * -2.12194440e-4f;
  vec_f32 p = splat<float>(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  vec_i32 bits = (n + 127) << 23;
  vec_f32 scale;
  std::memcpy(&scale, &bits, VECTOR_BYTES);
  vec_f32 result = p * scale;
  return x < -87.0f ? vec_f32{} : (x != x ? x : result);
}
inline vec_f64 exp_nonpositive(vec_f64 x) {
  for (int j = 0; j < LANES<double>; ++j) x[j] = std::exp(x[j]);
  return x;
}

// sigma(x) and sigma(-x), each computed without subtracting from one.
template <class T> inline void sigmoids(Vec<T> x, Vec<T>& plus, Vec<T>& minus) {
  Vec<T> e = exp_nonpositive(x < T(0) ? x : -x);
  Vec<T> r = T(1) / (T(1) + e);
  plus = x < T(0) ? e * r : r;
  minus = x < T(0) ? r : e * r;
}

// n values from p, zeros beyond: a row shorter than a vector never reads past its end.
template <class T> inline Vec<T> load_part(const T* p, int n) {
  if (n >= LANES<T>) return load<T>(p);
  T part[LANES<T>] = {};
  std::memcpy(part, p, std::max(n, 0) * sizeof(T));
  return load<T>(part);
}
template <class T> inline void store_part(T* p, Vec<T> x, int n) {
  if (n >= LANES<T>) store<T>(p, x);
  else std::memcpy(p, &x, std::max(n, 0) * sizeof(T));
}

// Scratch aligned to a cache line: zeros, or, where all of it is written before it is read, whatever was there.
template <class T> struct Buffer {
  std::unique_ptr<T[]> room;
  T* at;
  explicit Buffer(size_t n, bool zeros = true) : room(new T[n + 64 / sizeof(T)]) {
    at = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(room.get()) + 63) & ~uintptr_t(63));
    if (zeros) std::fill_n(at, n, T(0));
  }
};

inline int64_t round_up(int64_t n, int64_t m) { return (n + m - 1) / m * m; }
