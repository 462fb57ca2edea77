// How float32 numbers are written for the wire, and read back: kernels without any memory of their own.
//
//   codec  bytes each  scale                                                lost
//   none   4           -                                                    nothing
//   fp16   2           a power of two per block: the block's largest value  11 bits of mantissa are kept, fewer of what
//                      comes to lie in [2^14, 2^15)                         is 2^29 times smaller than the largest
//   bf16   2           -                                                    8 bits of mantissa are kept
//   int8   1           largest / 127 per block                              rounded up or down at random, so that the
//                                                                           mean is right
//
// A chunk on the wire: the scales of its blocks (fp16, int8), then the numbers. What is not finite stays visible: as
// itself with fp16 and bf16; with int8 the whole block becomes NaN. (The very largest finite numbers, about 3.4e38, may
// become infinite.) Every function gives the same bits on every machine, with vector instructions or without, but for a
// NaN's own: nothing is contracted into fused operations, nothing depends on alignment.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>
#define HVTRAIN_X86 1
#endif

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC optimize("O3", "fp-contract=off")
#endif

namespace hvtrain {

enum class Codec : int { kNone = 0, kFp16 = 1, kBf16 = 2, kInt8 = 3 };

// Numbers that share a scale. Small enough that a block, its encoding and the sums stay in the first cache.
constexpr size_t kBlock = 1024;

inline size_t elementBytes(Codec codec) {
  return codec == Codec::kNone ? 4 : codec == Codec::kInt8 ? 1 : 2;
}

inline size_t scaleBytes(Codec codec, size_t count) {
  bool scaled = codec == Codec::kFp16 || codec == Codec::kInt8;
  return scaled ? (count + kBlock - 1) / kBlock * sizeof(float) : 0;
}

inline size_t wireBytes(Codec codec, size_t count) {
  return scaleBytes(codec, count) + count * elementBytes(codec);
}

inline uint32_t bitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float floatOf(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// 32 bits in, 32 well mixed bits out; Wellons' "lowbias32" (nullprogram.com/blog/2018/07/31).
inline uint32_t mixed(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352dU;
  x ^= x >> 15;
  x *= 0x846ca68bU;
  return x ^ (x >> 16);
}

constexpr uint32_t kInfinity = 0x7f800000U;

// The power of two that brings `largest` (bits of a finite absolute value) into [2^14, 2^15), and its inverse.
inline void powerScale(uint32_t largest, float& scale, float& inverse) {
  uint32_t exponent = largest >> 23;
  uint32_t biased = exponent < 15 ? 253 : 268 - exponent; // 2^126 at most: its inverse is a normal number
  scale = largest == 0 ? 1.0f : floatOf(biased << 23);
  inverse = largest == 0 ? 1.0f : floatOf((254 - biased) << 23);
}

// float16 by hand, round to nearest even, for where there is no instruction for it.
inline uint16_t halfOf(float value) {
  uint32_t bits = bitsOf(value), sign = (bits >> 16) & 0x8000U, rest = bits & 0x7fffffffU;
  if (rest > kInfinity) {
    return static_cast<uint16_t>(sign | 0x7e00U | ((rest >> 13) & 0x3ffU));
  }
  if (rest >= 0x47800000U) { // 65536 and more
    return static_cast<uint16_t>(sign | 0x7c00U);
  }
  if (rest < 0x38800000U) { // below 2^-14: the addition rounds at the place of the last bit of a half's subnormal
    float shifted = floatOf(rest) + 0.5f;
    return static_cast<uint16_t>(sign | (bitsOf(shifted) - 0x3f000000U));
  }
  return static_cast<uint16_t>(sign | ((rest - 0x38000000U + 0xfffU + ((rest >> 13) & 1U)) >> 13));
}

inline float floatOfHalf(uint16_t half) {
  uint32_t sign = (half & 0x8000U) << 16, rest = half & 0x7fffU;
  if (rest >= 0x7c00U) {
    return floatOf(sign | kInfinity | ((rest & 0x3ffU) << 13) | (rest > 0x7c00U ? 0x400000U : 0));
  }
  if (rest < 0x400U) {
    return floatOf(sign | bitsOf(static_cast<float>(rest) * 5.9604644775390625e-8f));
  }
  return floatOf(sign | ((rest << 13) + 0x38000000U));
}

// The loops, once for every machine and once more for those with 256-bit vectors: the same text, so the same bits.
#define HVTRAIN_LOOPS(NAME, ATTRIBUTES)                                                                        \
  struct NAME {                                                                                                \
    ATTRIBUTES static uint32_t largest(const float* in, size_t count) {                                        \
      uint32_t most = 0;                                                                                       \
      for (size_t i = 0; i < count; ++i) {                                                                     \
        uint32_t bits = bitsOf(in[i]) & 0x7fffffffU;                                                           \
        most = bits > most ? bits : most;                                                                      \
      }                                                                                                        \
      return most;                                                                                             \
    }                                                                                                          \
    ATTRIBUTES static void toBf16(const float* in, size_t count, uint16_t* out) {                              \
      for (size_t i = 0; i < count; ++i) {                                                                     \
        uint32_t bits = bitsOf(in[i]);                                                                         \
        uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;                                       \
        uint32_t quiet = (bits >> 16) | 0x40U;                                                                 \
        out[i] = static_cast<uint16_t>((bits & 0x7fffffffU) > kInfinity ? quiet : rounded);                    \
      }                                                                                                        \
    }                                                                                                          \
    ATTRIBUTES static void fromBf16(const uint16_t* in, size_t count, float* out) {                            \
      for (size_t i = 0; i < count; ++i) {                                                                     \
        out[i] = floatOf(static_cast<uint32_t>(in[i]) << 16);                                                  \
      }                                                                                                        \
    }                                                                                                          \
    ATTRIBUTES static void toInt8(const float* in, size_t count, float inverse, uint32_t seed, uint32_t first, \
                                  int8_t* out) {                                                               \
      for (size_t i = 0; i < count; ++i) {                                                                     \
        uint32_t noise = mixed((first + static_cast<uint32_t>(i)) * 0x9e3779b9U + seed) >> 16;                 \
        /* 16 bits of noise: the sum, between 128 and 256, is exact to 2^-16. A zero stays a zero. */          \
        float moved = in[i] * inverse + 128.0f + static_cast<float>(static_cast<int32_t>(noise)) * 0x1p-16f;   \
        int32_t whole = static_cast<int32_t>(moved); /* positive: cutting off is rounding down */              \
        out[i] = static_cast<int8_t>((whole < 1 ? 1 : whole > 255 ? 255 : whole) - 128);                       \
      }                                                                                                        \
    }                                                                                                          \
    ATTRIBUTES static void fromInt8(const int8_t* in, size_t count, float scale, float* out) {                 \
      for (size_t i = 0; i < count; ++i) {                                                                     \
        out[i] = static_cast<float>(static_cast<int32_t>(in[i])) * scale;                                      \
      }                                                                                                        \
    }                                                                                                          \
    ATTRIBUTES static void add(float* sum, const float* in, size_t count) {                                    \
      for (size_t i = 0; i < count; ++i) {                                                                     \
        sum[i] += in[i];                                                                                       \
      }                                                                                                        \
    }                                                                                                          \
  };

HVTRAIN_LOOPS(PlainLoops, __attribute__((noinline)))
#ifdef HVTRAIN_X86
HVTRAIN_LOOPS(WideLoops, __attribute__((noinline, target("avx2"))))

__attribute__((noinline, target("avx2,f16c"))) inline size_t toHalfWide(const float* in, size_t count, float scale,
                                                                         uint16_t* out) {
  size_t i = 0;
  __m256 factor = _mm256_set1_ps(scale);
  for (; i + 8 <= count; i += 8) {
    __m256 value = _mm256_mul_ps(_mm256_loadu_ps(in + i), factor);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  return i;
}

__attribute__((noinline, target("avx2,f16c"))) inline size_t fromHalfWide(const uint16_t* in, size_t count,
                                                                           float inverse, float* out) {
  size_t i = 0;
  __m256 factor = _mm256_set1_ps(inverse);
  for (; i + 8 <= count; i += 8) {
    __m256 value = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i)));
    _mm256_storeu_ps(out + i, _mm256_mul_ps(value, factor));
  }
  return i;
}
#endif
#undef HVTRAIN_LOOPS

inline bool wideSupported() {
#ifdef HVTRAIN_X86
  unsigned a, b, c, d; // __builtin_cpu_supports() does not know f16c before GCC 11
  return __builtin_cpu_supports("avx2") && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
#else
  return false;
#endif
}

inline bool& wideEnabled() { // tests switch it off, to compare
  static bool enabled = wideSupported();
  return enabled;
}

#ifdef HVTRAIN_X86
#define HVTRAIN_CALL(FUNCTION, ...) \
  (wideEnabled() ? WideLoops::FUNCTION(__VA_ARGS__) : PlainLoops::FUNCTION(__VA_ARGS__))
#else
#define HVTRAIN_CALL(FUNCTION, ...) PlainLoops::FUNCTION(__VA_ARGS__)
#endif

inline void add(float* sum, const float* in, size_t count) { HVTRAIN_CALL(add, sum, in, count); }

// Encode one block of at most kBlock numbers. `first` is the place of its first number among those that share `seed`.
inline void encodeBlock(Codec codec, const float* in, size_t count, uint32_t seed, uint32_t first, float& scale,
                        uint8_t* out) {
  if (codec == Codec::kBf16) {
    HVTRAIN_CALL(toBf16, in, count, reinterpret_cast<uint16_t*>(out));
    return;
  }
  if (codec == Codec::kNone) {
    std::memcpy(out, in, count * sizeof(float));
    return;
  }
  uint32_t largest = HVTRAIN_CALL(largest, in, count);
  if (codec == Codec::kInt8) {
    bool finite = largest < kInfinity, tiny = largest < 0x04000000U; // below 2^-119, 127 / largest is infinite
    float most = floatOf(largest);
    scale = !finite ? floatOf(0x7fc00000U) : tiny ? 0.0f : most / 127.0f;
    float inverse = !finite || tiny ? 0.0f : 127.0f / most;
    if (inverse == 0.0f) {
      std::memset(out, finite ? 0 : 1, count); // 1 * NaN
    } else {
      HVTRAIN_CALL(toInt8, in, count, inverse, seed, first, reinterpret_cast<int8_t*>(out));
    }
    return;
  }
  if (largest >= kInfinity) { // rare: the scale is that of the finite ones
    largest = 0;
    for (size_t i = 0; i < count; ++i) {
      uint32_t bits = bitsOf(in[i]) & 0x7fffffffU;
      largest = bits > largest && bits < kInfinity ? bits : largest;
    }
  }
  float factor;
  powerScale(largest, factor, scale);
  auto halves = reinterpret_cast<uint16_t*>(out);
  size_t done = 0;
#ifdef HVTRAIN_X86
  done = wideEnabled() ? toHalfWide(in, count, factor, halves) : 0;
#endif
  for (size_t i = done; i < count; ++i) {
    halves[i] = halfOf(in[i] * factor);
  }
}

inline void decodeBlock(Codec codec, const uint8_t* in, size_t count, float scale, float* out) {
  switch (codec) {
  case Codec::kNone:
    std::memcpy(out, in, count * sizeof(float));
    return;
  case Codec::kBf16:
    HVTRAIN_CALL(fromBf16, reinterpret_cast<const uint16_t*>(in), count, out);
    return;
  case Codec::kInt8:
    HVTRAIN_CALL(fromInt8, reinterpret_cast<const int8_t*>(in), count, scale, out);
    return;
  case Codec::kFp16:
    break;
  }
  auto halves = reinterpret_cast<const uint16_t*>(in);
  size_t done = 0;
#ifdef HVTRAIN_X86
  done = wideEnabled() ? fromHalfWide(halves, count, scale, out) : 0;
#endif
  for (size_t i = done; i < count; ++i) {
    out[i] = floatOfHalf(halves[i]) * scale;
  }
}

// A chunk on the wire, of `count` numbers.
struct Chunk {
  Codec codec;
  uint8_t* bytes;
  size_t count;

  float scale(size_t block) const {
    float value = 1.0f;
    if (scaleBytes(codec, count)) {
      std::memcpy(&value, bytes + block * sizeof(float), sizeof value);
    }
    return value;
  }
  void setScale(size_t block, float value) const {
    if (scaleBytes(codec, count)) {
      std::memcpy(bytes + block * sizeof(float), &value, sizeof value);
    }
  }
  uint8_t* numbers(size_t block) const {
    return bytes + scaleBytes(codec, count) + block * kBlock * elementBytes(codec);
  }
  size_t blocks() const { return (count + kBlock - 1) / kBlock; }
  size_t length(size_t block) const { return block + 1 < blocks() ? kBlock : count - block * kBlock; }

  void encode(const float* in, uint32_t seed, uint32_t first) const {
    for (size_t b = 0; b < blocks(); ++b) {
      encodeBlock(b, in + b * kBlock, seed, first);
    }
  }
  void encodeBlock(size_t block, const float* in, uint32_t seed, uint32_t first) const {
    float value = 1.0f;
    hvtrain::encodeBlock(codec, in, length(block), seed, first + static_cast<uint32_t>(block * kBlock), value,
                         numbers(block));
    setScale(block, value);
  }
  void decode(float* out) const {
    for (size_t b = 0; b < blocks(); ++b) {
      decodeBlock(b, out + b * kBlock);
    }
  }
  void decodeBlock(size_t block, float* out) const {
    hvtrain::decodeBlock(codec, numbers(block), length(block), scale(block), out);
  }
};

} // namespace hvtrain

#undef HVTRAIN_CALL
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif
