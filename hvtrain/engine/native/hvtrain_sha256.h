// SHA-256 (FIPS 180-4) and HMAC-SHA256 (RFC 2104), for proofs of membership: a few hundred bytes for each connection.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

namespace hvtrain {

using Digest = std::array<uint8_t, 32>;

class Sha256 {
 public:
  void add(const void* data, size_t count) {
    auto bytes = static_cast<const uint8_t*>(data);
    for (size_t i = 0; i < count; ++i) {
      block_[length_++ % 64] = bytes[i];
      if (length_ % 64 == 0) {
        compress();
      }
    }
  }
  void add(const std::string& text) { add(text.data(), text.size()); }

  // To be called once, at the end.
  Digest end() {
    uint64_t bits = 8 * length_;
    uint8_t stop = 0x80, zero = 0;
    add(&stop, 1);
    while (length_ % 64 != 56) {
      add(&zero, 1);
    }
    uint8_t size[8];
    for (int i = 0; i < 8; ++i) {
      size[i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
    }
    add(size, 8);
    Digest digest;
    for (int i = 0; i < 32; ++i) {
      digest[i] = static_cast<uint8_t>(state_[i / 4] >> (24 - 8 * (i % 4)));
    }
    return digest;
  }

 private:
  static uint32_t turned(uint32_t x, int n) { return (x >> n) | (x << (32 - n)); }

  void compress() {
    static const uint32_t k[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    uint32_t w[64];
    for (int i = 0; i < 16; ++i) {
      w[i] = static_cast<uint32_t>(block_[4 * i]) << 24 | static_cast<uint32_t>(block_[4 * i + 1]) << 16 |
             static_cast<uint32_t>(block_[4 * i + 2]) << 8 | block_[4 * i + 3];
    }
    for (int i = 16; i < 64; ++i) {
      uint32_t a = w[i - 15], b = w[i - 2];
      w[i] = w[i - 16] + (turned(a, 7) ^ turned(a, 18) ^ a >> 3) + w[i - 7] +
             (turned(b, 17) ^ turned(b, 19) ^ b >> 10);
    }
    auto v = state_;
    for (int i = 0; i < 64; ++i) {
      uint32_t e = v[4], a = v[0];
      uint32_t one = v[7] + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & v[5]) ^ (~e & v[6])) + k[i] + w[i];
      uint32_t two = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
      v = {one + two, a, v[1], v[2], v[3] + one, e, v[5], v[6]};
    }
    for (int i = 0; i < 8; ++i) {
      state_[i] += v[i];
    }
  }

  std::array<uint32_t, 8> state_{{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab,
                                  0x5be0cd19}};
  uint8_t block_[64] = {};
  uint64_t length_ = 0;
};

inline Digest hmac(const std::string& key, const std::string& message) {
  uint8_t pad[64] = {};
  if (key.size() > sizeof pad) {
    Sha256 hash;
    hash.add(key);
    auto digest = hash.end();
    std::memcpy(pad, digest.data(), digest.size());
  } else {
    std::memcpy(pad, key.data(), key.size());
  }
  for (auto& byte : pad) {
    byte ^= 0x36;
  }
  Sha256 inner, outer;
  inner.add(pad, sizeof pad);
  inner.add(message);
  auto digest = inner.end();
  for (auto& byte : pad) {
    byte ^= 0x36 ^ 0x5c;
  }
  outer.add(pad, sizeof pad);
  outer.add(digest.data(), digest.size());
  return outer.end();
}

// Takes as long wherever the two differ.
inline bool same(const uint8_t* a, const uint8_t* b, size_t count) {
  volatile uint8_t differing = 0;
  for (size_t i = 0; i < count; ++i) {
    differing = static_cast<uint8_t>(differing | (a[i] ^ b[i]));
  }
  return differing == 0;
}

inline std::string hexadecimal(const Digest& digest) {
  std::string text;
  for (auto byte : digest) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text;
}

} // namespace hvtrain
