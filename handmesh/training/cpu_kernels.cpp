// Training kernels for convolutional networks on CPUs with AVX-512 and bfloat16 instructions.
//
// Tensors are bfloat16 in NHWC order (torch's channels_last), weights and per-channel vectors float32.
// Depthwise convolutions work on blocks of 16 output channels: the image of one block is unpacked to float32
// with a zero border, small enough for the L2 cache, and convolved in registers.
// The per-channel passes (moments, affine sums and their gradients) are plain sweeps over (rows, channels).
// Every function runs on `threads` threads.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

using bf16 = uint16_t;
constexpr int LANES = 16;
constexpr int MAX_INPUTS = 3;

inline __m512 widen(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
inline __m512 load(const bf16* p) { return widen(_mm256_loadu_si256((const __m256i*)p)); }
inline __m512 load(const bf16* p, __mmask16 m) { return widen(_mm256_maskz_loadu_epi16(m, p)); }
inline void store(bf16* p, __m512 v) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v)); }
inline void store(bf16* p, __m512 v, __mmask16 m) {
  _mm256_mask_storeu_epi16(p, m, (__m256i)_mm512_cvtneps_pbh(v));
}
inline __mmask16 tail_mask(int left) { return left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1); }

// 8 input channels, each repeated for its two output channels.
inline __m512 load_doubled(const bf16* p) {
  const __m256i order = _mm256_set_epi16(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
  return widen(_mm256_permutexvar_epi16(order, _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)p))));
}
// The gradients of two output channels add up in their common input channel.
inline void store_halved(bf16* p, __m512 v) {
  __m512 pairs = _mm512_add_ps(v, _mm512_permute_ps(v, 0xb1));
  __m256 evens = _mm512_castps512_ps256(_mm512_maskz_compress_ps(0x5555, pairs));
  _mm_storeu_si128((__m128i*)p, (__m128i)_mm256_cvtneps_pbh(evens));
}

// One growing scratch buffer per thread and use.
float* scratch(int use, size_t floats, bool zero) {
  struct Slot {
    float* data = nullptr;
    size_t size = 0;
    ~Slot() { free(data); }
  };
  static thread_local std::vector<Slot> slots(12);
  Slot& slot = slots[use];
  if (slot.size < floats) {
    free(slot.data);
    slot.size = (floats + LANES - 1) / LANES * LANES;
    slot.data = (float*)aligned_alloc(64, slot.size * sizeof(float));
  }
  if (zero) memset(slot.data, 0, floats * sizeof(float));
  return slot.data;
}

// ---------------------------------------------------------------------------------------------------------------
// Depthwise convolution
// ---------------------------------------------------------------------------------------------------------------

// T neighbouring outputs of a KxK convolution at stride S over a float32 block image of `pitch` pixels a row.
template <int K, int S, int T>
inline void correlate(const float* in, int pitch, const float* weight, __m512* sums) {
  for (int t = 0; t < T; t++) sums[t] = _mm512_setzero_ps();
  for (int ky = 0; ky < K; ky++) {
    const float* row = in + (size_t)ky * pitch * LANES;
    __m512 w[K];
#pragma GCC unroll 8
    for (int k = 0; k < K; k++) w[k] = _mm512_load_ps(weight + (ky * K + k) * LANES);
#pragma GCC unroll 32
    for (int i = 0; i < (T - 1) * S + K; i++) {
      __m512 v = _mm512_load_ps(row + i * LANES);
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) {
        int k = i - t * S;
        if (k >= 0 && k < K) sums[t] = _mm512_fmadd_ps(v, w[k], sums[t]);
      }
    }
  }
}

// Write(pixel, vector) receives every output of one block image in row order.
template <int K, int S, class Write>
void convolve(const float* in, int pitch, const float* weight, int OH, int OW, Write write) {
  for (int y = 0; y < OH; y++) {
    const float* row = in + (size_t)y * S * pitch * LANES;
    int x = 0;
    for (; x + 8 <= OW; x += 8) {
      __m512 sums[8];
      correlate<K, S, 8>(row + (size_t)x * S * LANES, pitch, weight, sums);
#pragma GCC unroll 8
      for (int t = 0; t < 8; t++) write(y * OW + x + t, sums[t]);
    }
    for (; x + 4 <= OW; x += 4) {
      __m512 sums[4];
      correlate<K, S, 4>(row + (size_t)x * S * LANES, pitch, weight, sums);
#pragma GCC unroll 4
      for (int t = 0; t < 4; t++) write(y * OW + x + t, sums[t]);
    }
    for (; x < OW; x++) {
      __m512 sums[1];
      correlate<K, S, 1>(row + (size_t)x * S * LANES, pitch, weight, sums);
      write(y * OW + x, sums[0]);
    }
  }
}

template <int K, int S, int T>
inline void gather_weight_gradient(const float* in, const float* grad, __m512* sums) {
  __m512 g[T];
#pragma GCC unroll 8
  for (int t = 0; t < T; t++) g[t] = _mm512_load_ps(grad + t * LANES);
#pragma GCC unroll 32
  for (int i = 0; i < (T - 1) * S + K; i++) {
    __m512 v = _mm512_load_ps(in + i * LANES);
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      int k = i - t * S;
      if (k >= 0 && k < K) sums[k] = _mm512_fmadd_ps(v, g[t], sums[k]);
    }
  }
}

// grad_weight (K*K, 16) += correlation of the block image with the output's gradient (rows of grad_pitch pixels).
template <int K, int S>
void weight_gradient(const float* in, int pitch, const float* grad, int grad_pitch, int OH, int OW,
                     float* grad_weight) {
  for (int ky = 0; ky < K; ky++) {
    __m512 sums[K];
#pragma GCC unroll 8
    for (int k = 0; k < K; k++) sums[k] = _mm512_load_ps(grad_weight + (ky * K + k) * LANES);
    for (int y = 0; y < OH; y++) {
      const float* row = in + (size_t)(y * S + ky) * pitch * LANES;
      const float* g = grad + (size_t)y * grad_pitch * LANES;
      int x = 0;
      for (; x + 4 <= OW; x += 4)
        gather_weight_gradient<K, S, 4>(row + (size_t)x * S * LANES, g + (size_t)x * LANES, sums);
      for (; x < OW; x++)
        gather_weight_gradient<K, S, 1>(row + (size_t)x * S * LANES, g + (size_t)x * LANES, sums);
    }
#pragma GCC unroll 8
    for (int k = 0; k < K; k++) _mm512_store_ps(grad_weight + (ky * K + k) * LANES, sums[k]);
  }
}

template <int K, int S, int T>
inline void scatter_input_gradient(float* out, const float* grad, const __m512* w) {
  constexpr int SPAN = (T - 1) * S + K;
  __m512 g[T];
#pragma GCC unroll 8
  for (int t = 0; t < T; t++) g[t] = _mm512_load_ps(grad + t * LANES);
#pragma GCC unroll 32
  for (int i = 0; i < SPAN; i++) {
    __m512 sum = _mm512_load_ps(out + i * LANES);
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      int k = i - t * S;
      if (k >= 0 && k < K) sum = _mm512_fmadd_ps(g[t], w[k], sum);
    }
    _mm512_store_ps(out + i * LANES, sum);
  }
}

// The padded block image `out` += transposed convolution of the output's gradient.
template <int K, int S>
void input_gradient(float* out, int pitch, const float* weight, const float* grad, int OH, int OW) {
  for (int ky = 0; ky < K; ky++) {
    __m512 w[K];
#pragma GCC unroll 8
    for (int k = 0; k < K; k++) w[k] = _mm512_load_ps(weight + (ky * K + k) * LANES);
    for (int y = 0; y < OH; y++) {
      float* row = out + (size_t)(y * S + ky) * pitch * LANES;
      const float* g = grad + (size_t)y * OW * LANES;
      int x = 0;
      for (; x + 4 <= OW; x += 4)
        scatter_input_gradient<K, S, 4>(row + (size_t)x * S * LANES, g + (size_t)x * LANES, w);
      for (; x < OW; x++)
        scatter_input_gradient<K, S, 1>(row + (size_t)x * S * LANES, g + (size_t)x * LANES, w);
    }
  }
}

// Calls f with compile-time kernel size and stride.
template <class F>
bool dispatch(int kernel, int stride, F f) {
  using std::integral_constant;
#define HANDMESH_CASE(K, S) \
  if (kernel == K && stride == S) return f(integral_constant<int, K>(), integral_constant<int, S>()), true
  HANDMESH_CASE(1, 1);
  HANDMESH_CASE(1, 2);
  HANDMESH_CASE(3, 1);
  HANDMESH_CASE(3, 2);
  HANDMESH_CASE(5, 1);
  HANDMESH_CASE(5, 2);
  HANDMESH_CASE(7, 1);
  HANDMESH_CASE(7, 2);
#undef HANDMESH_CASE
  return false;
}

struct Geometry {  // mirrored by cpu_ops.py
  int images, channels, multiplier, height, width, out_height, out_width, stride, kernels, threads;
  int size[MAX_INPUTS], pad_y[MAX_INPUTS], pad_x[MAX_INPUTS];
};

// How the block image lies in its padded buffer.
struct Padded {
  int top = 0, left = 0, height, width;
  explicit Padded(const Geometry& g) {
    for (int i = 0; i < g.kernels; i++) {
      top = std::max(top, g.pad_y[i]);
      left = std::max(left, g.pad_x[i]);
    }
    height = top + g.height;
    width = left + g.width;
    for (int i = 0; i < g.kernels; i++) {
      height = std::max(height, top - g.pad_y[i] + (g.out_height - 1) * g.stride + g.size[i]);
      width = std::max(width, left - g.pad_x[i] + (g.out_width - 1) * g.stride + g.size[i]);
    }
  }
  size_t floats() const { return (size_t)height * width * LANES; }
  size_t origin(const Geometry& g, int i) const {
    return ((size_t)(top - g.pad_y[i]) * width + left - g.pad_x[i]) * LANES;
  }
};

void unpack(const bf16* in, int H, int W, int pixel_stride, int multiplier, float* out, int pitch, int top, int left) {
  for (int y = 0; y < H; y++) {
    const bf16* p = in + (size_t)y * W * pixel_stride;
    float* q = out + ((size_t)(top + y) * pitch + left) * LANES;
    if (multiplier == 1)
      for (int x = 0; x < W; x++) _mm512_store_ps(q + x * LANES, load(p + (size_t)x * pixel_stride));
    else
      for (int x = 0; x < W; x++) _mm512_store_ps(q + x * LANES, load_doubled(p + (size_t)x * pixel_stride));
  }
}

// (C, K*K) weights of one channel block as (K*K, 16), optionally turned by 180 degrees.
void pack_weight(const float* weight, int block, int taps, bool turned, float* out) {
  for (int k = 0; k < taps; k++)
    for (int c = 0; c < LANES; c++)
      out[k * LANES + c] = weight[(size_t)(block * LANES + c) * taps + (turned ? taps - 1 - k : k)];
}

// ---------------------------------------------------------------------------------------------------------------
// Activations
// ---------------------------------------------------------------------------------------------------------------

enum Activation { NONE = 0, GELU = 1, RELU6 = 2 };

inline __m512 exponential(__m512 x) {  // relative error below 1e-4, enough for bfloat16
  x = _mm512_max_ps(_mm512_min_ps(x, _mm512_set1_ps(80.f)), _mm512_set1_ps(-80.f));
  __m512 t = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
  __m512 whole = _mm512_roundscale_ps(t, 0), f = _mm512_sub_ps(t, whole);
  __m512 p = _mm512_set1_ps(0.0096181291f);  // Taylor series of 2^f, |f| <= 1/2
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.0555041087f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.240226507f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.693147181f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.f));
  return _mm512_scalef_ps(p, whole);
}

// GELU in its tanh form, x * sigmoid(2 * sqrt(2/pi) * (x + 0.044715 x^3)) (Hendrycks and Gimpel, arXiv 1606.08415).
constexpr float GELU_LINEAR = 1.5957691216f, GELU_CUBIC = 0.044715f * GELU_LINEAR;

inline __m512 gelu_sigmoid(__m512 x, __m512 square) {
  __m512 u = _mm512_mul_ps(x, _mm512_fmadd_ps(square, _mm512_set1_ps(-GELU_CUBIC), _mm512_set1_ps(-GELU_LINEAR)));
  __m512 d = _mm512_add_ps(_mm512_set1_ps(1.f), exponential(u));
  __m512 r = _mm512_rcp14_ps(d);  // 14 bits: bfloat16 has 8
  return r;
}

template <int ACT>
inline __m512 activate(__m512 x) {
  if (ACT == GELU) return _mm512_mul_ps(x, gelu_sigmoid(x, _mm512_mul_ps(x, x)));
  if (ACT == RELU6) return _mm512_min_ps(_mm512_max_ps(x, _mm512_setzero_ps()), _mm512_set1_ps(6.f));
  return x;
}

template <int ACT>
inline __m512 activation_gradient(__m512 x, __m512 g) {
  if (ACT == GELU) {
    __m512 square = _mm512_mul_ps(x, x), s = gelu_sigmoid(x, square);
    __m512 du = _mm512_fmadd_ps(square, _mm512_set1_ps(3 * GELU_CUBIC), _mm512_set1_ps(GELU_LINEAR));
    __m512 xs = _mm512_mul_ps(x, s);
    __m512 slope = _mm512_fmadd_ps(_mm512_fnmadd_ps(xs, s, xs), du, s);
    return _mm512_mul_ps(slope, g);
  }
  if (ACT == RELU6) {
    __mmask16 inside = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ) &
                       _mm512_cmp_ps_mask(x, _mm512_set1_ps(6.f), _CMP_LT_OQ);
    return _mm512_maskz_mov_ps(inside, g);
  }
  return g;
}

// ---------------------------------------------------------------------------------------------------------------
// Per-channel passes over (rows, channels)
// ---------------------------------------------------------------------------------------------------------------

struct Inputs {  // mirrored by cpu_ops.py
  int count, channels;
  int64_t rows;
  const bf16* data[MAX_INPUTS];
  const float* scale[MAX_INPUTS];
  const float* shift;
};

constexpr int64_t CHUNK = 128;  // rows whose sums are taken in registers at once; they stay in the cache

template <int N>
inline __m512 combine(const Inputs& in, size_t at, int c, __mmask16 m) {
  __m512 u = _mm512_maskz_loadu_ps(m, in.shift + c);
#pragma GCC unroll 4
  for (int i = 0; i < N; i++)
    u = _mm512_fmadd_ps(load(in.data[i] + at, m), _mm512_maskz_loadu_ps(m, in.scale[i] + c), u);
  return u;
}

template <int N, int ACT>
void affine_forward(const Inputs& in, bf16* out, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t row = 0; row < in.rows; row++)
    for (int c = 0; c < in.channels; c += LANES) {
      __mmask16 m = tail_mask(in.channels - c);
      size_t at = (size_t)row * in.channels + c;
      store(out + at, activate<ACT>(combine<N>(in, at, c, m)), m);
    }
}

// sums (N+1, C) = over rows, of the pre-activation's gradient and of its products with each input.
template <int N, int ACT>
void affine_reduce(const Inputs& in, const bf16* grad, bf16* grad_pre, double* sums, int threads) {
  const int C = in.channels;
  const int64_t chunks = (in.rows + CHUNK - 1) / CHUNK;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<double> local((size_t)(N + 1) * C, 0.0);
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
      const int64_t begin = chunk * CHUNK, end = std::min(in.rows, begin + CHUNK);
      for (int c = 0; c < C; c += LANES) {
        const __mmask16 m = tail_mask(C - c);
        __m512 acc[N + 1];
#pragma GCC unroll 4
        for (int i = 0; i <= N; i++) acc[i] = _mm512_setzero_ps();
        for (int64_t row = begin; row < end; row++) {
          const size_t at = (size_t)row * C + c;
          __m512 g = load(grad + at, m);
          if (ACT != NONE) {
            g = activation_gradient<ACT>(combine<N>(in, at, c, m), g);
            store(grad_pre + at, g, m);
          }
          acc[N] = _mm512_add_ps(acc[N], g);
#pragma GCC unroll 4
          for (int i = 0; i < N; i++) acc[i] = _mm512_fmadd_ps(load(in.data[i] + at, m), g, acc[i]);
        }
        for (int i = 0; i <= N; i++) {
          alignas(64) float lanes[LANES];
          _mm512_store_ps(lanes, acc[i]);
          for (int l = 0; l < LANES && c + l < C; l++) local[(size_t)i * C + c + l] += lanes[l];
        }
      }
    }
#pragma omp critical
    for (size_t i = 0; i < local.size(); i++) sums[i] += local[i];
  }
}

// grad_in[i] = grad_pre * scale[i] + data[i] * slope[i] + offset[i]
template <int N>
void affine_apply(const Inputs& in, const bf16* grad_pre, const float* const* slope, const float* const* offset,
                  bf16* const* grad_in, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t row = 0; row < in.rows; row++)
    for (int c = 0; c < in.channels; c += LANES) {
      const __mmask16 m = tail_mask(in.channels - c);
      const size_t at = (size_t)row * in.channels + c;
      const __m512 g = load(grad_pre + at, m);
#pragma GCC unroll 4
      for (int i = 0; i < N; i++) {
        __m512 v = _mm512_fmadd_ps(load(in.data[i] + at, m), _mm512_maskz_loadu_ps(m, slope[i] + c),
                                   _mm512_maskz_loadu_ps(m, offset[i] + c));
        store(grad_in[i] + at, _mm512_fmadd_ps(g, _mm512_maskz_loadu_ps(m, in.scale[i] + c), v), m);
      }
    }
}

template <class F>
void with_inputs(int count, F f) {
  using std::integral_constant;
  if (count == 1) f(integral_constant<int, 1>());
  if (count == 2) f(integral_constant<int, 2>());
  if (count == 3) f(integral_constant<int, 3>());
}

template <class F>
void with_activation(int activation, F f) {
  using std::integral_constant;
  if (activation == NONE) f(integral_constant<int, NONE>());
  if (activation == GELU) f(integral_constant<int, GELU>());
  if (activation == RELU6) f(integral_constant<int, RELU6>());
}

}  // namespace

extern "C" {

// Up to three depthwise convolutions of the same input. weight[i]: (C, K_i, K_i), out[i]: (N, OH, OW, C).
void depthwise_forward(const Geometry* geometry, const bf16* in, const float* const* weight, bf16* const* out) {
  const Geometry& g = *geometry;
  const Padded padded(g);
  const int in_channels = g.channels / g.multiplier, block_in = LANES / g.multiplier;
#pragma omp parallel for schedule(static) num_threads(g.threads) if (g.threads > 1)
  for (int block = 0; block < g.channels / LANES; block++) {
    float* image = scratch(0, padded.floats(), true);
    float* packed[MAX_INPUTS];
    for (int i = 0; i < g.kernels; i++) {
      packed[i] = scratch(1 + i, (size_t)g.size[i] * g.size[i] * LANES, false);
      pack_weight(weight[i], block, g.size[i] * g.size[i], false, packed[i]);
    }
    for (int n = 0; n < g.images; n++) {
      unpack(in + (size_t)n * g.height * g.width * in_channels + block * block_in, g.height, g.width, in_channels,
             g.multiplier, image, padded.width, padded.top, padded.left);
      for (int i = 0; i < g.kernels; i++) {
        bf16* target = out[i] + (size_t)n * g.out_height * g.out_width * g.channels + block * LANES;
        dispatch(g.size[i], g.stride, [&](auto K, auto S) {
          convolve<K, S>(image + padded.origin(g, i), padded.width, packed[i], g.out_height, g.out_width,
                         [&](int pixel, __m512 v) { store(target + (size_t)pixel * g.channels, v); });
        });
      }
    }
  }
}

// grad_in (N, H, W, C / multiplier) may be null; grad_weight[i] (C, K_i, K_i) are overwritten.
void depthwise_backward(const Geometry* geometry, const bf16* in, const float* const* weight,
                        const bf16* const* grad_out, bf16* grad_in, float* const* grad_weight) {
  const Geometry& g = *geometry;
  const Padded padded(g);
  const int in_channels = g.channels / g.multiplier, block_in = LANES / g.multiplier;
  // A single unstrided kernel gathers: its input gradient is a convolution of the bordered output gradient with
  // the turned kernel. Otherwise gradients are scattered into one padded image.
  const bool gathers = g.kernels == 1 && g.stride == 1;
  const int border_y = gathers ? g.size[0] - 1 - g.pad_y[0] : 0, border_x = gathers ? g.size[0] - 1 - g.pad_x[0] : 0;
  const int grad_pitch = gathers ? g.width + g.size[0] - 1 : g.out_width;
  const int grad_height = gathers ? g.height + g.size[0] - 1 : g.out_height;
#pragma omp parallel for schedule(static) num_threads(g.threads) if (g.threads > 1)
  for (int block = 0; block < g.channels / LANES; block++) {
    float* image = scratch(0, padded.floats(), true);
    float* grad = scratch(4, (size_t)grad_height * grad_pitch * LANES, gathers);
    float* packed[MAX_INPUTS];
    float* sums[MAX_INPUTS];
    for (int i = 0; i < g.kernels; i++) {
      const int taps = g.size[i] * g.size[i];
      packed[i] = scratch(1 + i, (size_t)taps * LANES, false);
      pack_weight(weight[i], block, taps, gathers, packed[i]);
      sums[i] = scratch(5 + i, (size_t)taps * LANES, true);
    }
    const float* grad_origin = grad + ((size_t)border_y * grad_pitch + border_x) * LANES;
    for (int n = 0; n < g.images; n++) {
      unpack(in + (size_t)n * g.height * g.width * in_channels + block * block_in, g.height, g.width, in_channels,
             g.multiplier, image, padded.width, padded.top, padded.left);
      bf16* target =
          grad_in ? grad_in + (size_t)n * g.height * g.width * in_channels + block * block_in : nullptr;
      auto write = [&](int pixel, __m512 v) {
        if (g.multiplier == 1)
          store(target + (size_t)pixel * in_channels, v);
        else
          store_halved(target + (size_t)pixel * in_channels, v);
      };
      float* spread = gathers || !target ? nullptr : scratch(8, padded.floats(), true);
      for (int i = 0; i < g.kernels; i++) {
        unpack(grad_out[i] + (size_t)n * g.out_height * g.out_width * g.channels + block * LANES, g.out_height,
               g.out_width, g.channels, 1, grad, grad_pitch, border_y, border_x);
        dispatch(g.size[i], g.stride, [&](auto K, auto S) {
          weight_gradient<K, S>(image + padded.origin(g, i), padded.width, grad_origin, grad_pitch, g.out_height,
                                g.out_width, sums[i]);
          if (spread)
            input_gradient<K, S>(spread + padded.origin(g, i), padded.width, packed[i], grad, g.out_height,
                                 g.out_width);
          else if (target)
            convolve<K, 1>(grad, grad_pitch, packed[i], g.height, g.width, write);
        });
      }
      if (spread)
        for (int y = 0; y < g.height; y++)
          for (int x = 0; x < g.width; x++)
            write(y * g.width + x,
                  _mm512_load_ps(spread + ((size_t)(padded.top + y) * padded.width + padded.left + x) * LANES));
    }
    for (int i = 0; i < g.kernels; i++) {
      const int taps = g.size[i] * g.size[i];
      for (int k = 0; k < taps; k++)
        for (int c = 0; c < LANES; c++)
          grad_weight[i][(size_t)(block * LANES + c) * taps + k] = sums[i][k * LANES + c];
    }
  }
}

// 3x3 patches at stride 2 with a border of one zero pixel, of images (N, H, W, 3): out (N, H/2, W/2, 32), of which
// 27 values are the patch (row, column, channel) and the rest 0. H and W are even.
void stem_patches(const bf16* in, int images, int H, int W, bf16* out, int threads) {
  constexpr int PIXEL = 3, ROW = 9, WIDTH = 32;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int line = 0; line < images * (H / 2); line++) {
    const int n = line / (H / 2), y = line % (H / 2);
    bf16* p = out + (size_t)line * (W / 2) * WIDTH;
    memset(p, 0, (size_t)(W / 2) * WIDTH * sizeof(bf16));
    for (int ky = 0; ky < 3; ky++) {
      const int row = 2 * y - 1 + ky;
      if (row < 0) continue;
      const bf16* source = in + ((size_t)n * H + row) * W * PIXEL;
      memcpy(p + ky * ROW + PIXEL, source, 2 * PIXEL * sizeof(bf16));
      for (int x = 1; x < W / 2; x++)
        memcpy(p + (size_t)x * WIDTH + ky * ROW, source + (2 * x - 1) * PIXEL, ROW * sizeof(bf16));
    }
  }
}

void activation_forward(int activation, const bf16* in, bf16* out, int64_t count, int threads) {
  with_activation(activation, [&](auto ACT) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < count; i += LANES) {
      const __mmask16 m = tail_mask((int)std::min<int64_t>(LANES, count - i));
      store(out + i, activate<ACT>(load(in + i, m)), m);
    }
  });
}

void activation_backward(int activation, const bf16* in, const bf16* grad, bf16* grad_in, int64_t count, int threads) {
  with_activation(activation, [&](auto ACT) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < count; i += LANES) {
      const __mmask16 m = tail_mask((int)std::min<int64_t>(LANES, count - i));
      store(grad_in + i, activation_gradient<ACT>(load(in + i, m), load(grad + i, m)), m);
    }
  });
}

// sums (2, C) += over rows of x and x^2, through blocks of rows summed in float32 and then in float64.
void channel_moments(const bf16* in, int64_t rows, int C, double* sums, int threads) {
  const int64_t chunks = (rows + CHUNK - 1) / CHUNK;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<double> local((size_t)2 * C, 0.0);
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
      const int64_t begin = chunk * CHUNK, end = std::min(rows, begin + CHUNK);
      for (int c = 0; c < C; c += LANES) {
        const __mmask16 m = tail_mask(C - c);
        __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, square[2] = {sum[0], sum[0]};
        for (int64_t row = begin; row < end; row++) {
          const __m512 v = load(in + (size_t)row * C + c, m);
          sum[row & 1] = _mm512_add_ps(sum[row & 1], v);
          square[row & 1] = _mm512_fmadd_ps(v, v, square[row & 1]);
        }
        alignas(64) float lanes[2][LANES];
        _mm512_store_ps(lanes[0], _mm512_add_ps(sum[0], sum[1]));
        _mm512_store_ps(lanes[1], _mm512_add_ps(square[0], square[1]));
        for (int l = 0; l < LANES && c + l < C; l++) {
          local[c + l] += lanes[0][l];
          local[C + c + l] += lanes[1][l];
        }
      }
    }
#pragma omp critical
    for (size_t i = 0; i < local.size(); i++) sums[i] += local[i];
  }
}

void affine_sum_forward(const Inputs* in, int activation, bf16* out, int threads) {
  with_inputs(in->count, [&](auto N) {
    with_activation(activation, [&](auto ACT) { affine_forward<N, ACT>(*in, out, threads); });
  });
}

void affine_sum_reduce(const Inputs* in, int activation, const bf16* grad, bf16* grad_pre, double* sums, int threads) {
  with_inputs(in->count, [&](auto N) {
    with_activation(activation, [&](auto ACT) { affine_reduce<N, ACT>(*in, grad, grad_pre, sums, threads); });
  });
}

void affine_sum_apply(const Inputs* in, const bf16* grad_pre, const float* const* slope, const float* const* offset,
                      bf16* const* grad_in, int threads) {
  with_inputs(in->count, [&](auto N) { affine_apply<N>(*in, grad_pre, slope, offset, grad_in, threads); });
}

}  // extern "C"
