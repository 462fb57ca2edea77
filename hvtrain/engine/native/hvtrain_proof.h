// How two ranks prove to each other, over a connection that has just been made, that they belong to the same round.
//
//   connector                                                      listener
//   hello    its nonce c,  hmac("hello", c)           -- 64 -->    another hmac: the connection is closed
//            another hmac: the round cannot be formed <-- 64 --    answer   its nonce l,  hmac("listener", c, l)
//   proof    hmac("connector", c, l)                  -- 32 -->    another hmac: the connection is closed
//   connected                                                      connected
//
// The key of each hmac is the round's secret; beside what stands there it covers both ranks and the address that the
// listener has published, so that what is said to one rank is worth nothing to another one, and a nonce that this
// side has drawn itself, so that what has been recorded is worth nothing later. The first one covers no such nonce: it
// only tells who deserves a place among those that are waited for (hvtrain_admission.h).
//
// Nothing here waits. A message that a fresh connection's empty buffer does not take at once ends the attempt.
#pragma once

#include <cerrno>
#include <stdexcept>
#include <string>

#include <netinet/in.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "hvtrain_sha256.h"

namespace hvtrain {

constexpr size_t kNonceBytes = 32, kHmacBytes = 32;

// What a proof is about.
struct Names {
  uint32_t connector, listener; // ranks
  sockaddr_storage address;     // where the listener listens

  std::string bytes() const {
    uint8_t all[27] = {};
    for (int i = 0; i < 4; ++i) {
      all[i] = static_cast<uint8_t>(connector >> (24 - 8 * i));
      all[4 + i] = static_cast<uint8_t>(listener >> (24 - 8 * i));
    }
    if (address.ss_family == AF_INET) {
      auto four = reinterpret_cast<const sockaddr_in*>(&address);
      all[8] = 4;
      std::memcpy(all + 9, &four->sin_port, 2);
      std::memcpy(all + 11, &four->sin_addr, 4);
    } else {
      auto six = reinterpret_cast<const sockaddr_in6*>(&address);
      all[8] = 6;
      std::memcpy(all + 9, &six->sin6_port, 2);
      std::memcpy(all + 11, &six->sin6_addr, 16);
    }
    return std::string(reinterpret_cast<char*>(all), sizeof all);
  }
};

inline std::string nonce() {
  std::string bytes(kNonceBytes, '\0');
  size_t have = 0;
  while (have < bytes.size()) {
    auto got = ::getrandom(&bytes[have], bytes.size() - have, 0);
    if (got < 0 && errno != EINTR) {
      throw std::runtime_error("getrandom: no random numbers for a proof of membership");
    }
    have += got > 0 ? static_cast<size_t>(got) : 0;
  }
  return bytes;
}

// `role` is hello, listener or connector; `listeners` nonce is empty in a hello.
inline std::string proof(const std::string& secret, const std::string& role, const Names& names,
                         const std::string& connectors, const std::string& listeners) {
  auto digest = hmac(secret, "hvtrain gloo 1 " + role + std::string(1, '\0') + names.bytes() + connectors + listeners);
  return std::string(reinterpret_cast<char*>(digest.data()), digest.size());
}

// The path that the round's members ask the rendezvous for; whoever sees it on the network does not learn the secret.
inline std::string rendezvousPath(const std::string& secret) {
  return hexadecimal(hmac(secret, "hvtrain rendezvous 1"));
}

enum class Step { kMore, kDone, kClosed, kRefused };

inline bool tell(int fd, const std::string& message) {
  return ::send(fd, message.data(), message.size(), MSG_DONTWAIT | MSG_NOSIGNAL) ==
         static_cast<ssize_t>(message.size());
}

// A message of known size that comes in pieces. Never reads beyond it: what follows may be a tensor.
class Incoming {
 public:
  explicit Incoming(size_t size) : size_(size) {}

  Step read(int fd) {
    while (text_.size() < size_) {
      char piece[kNonceBytes + kHmacBytes];
      auto got = ::recv(fd, piece, size_ - text_.size(), MSG_DONTWAIT);
      if (got > 0) {
        text_.append(piece, static_cast<size_t>(got));
      } else if (got < 0 && errno == EINTR) {
        continue;
      } else {
        return got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? Step::kMore : Step::kClosed;
      }
    }
    return Step::kDone;
  }
  std::string nonce() const { return text_.substr(0, kNonceBytes); }
  // Whether it ends with this.
  bool proves(const std::string& expected) const {
    auto bytes = [](const std::string& text) { return reinterpret_cast<const uint8_t*>(text.data()); };
    return same(bytes(text_) + text_.size() - kHmacBytes, bytes(expected), kHmacBytes);
  }

 private:
  size_t size_;
  std::string text_;
};

// A descriptor that becomes readable after this time, or -1.
inline int timer(int milliseconds) {
  int fd = ::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  itimerspec when = {};
  when.it_value.tv_sec = milliseconds / 1000;
  when.it_value.tv_nsec = milliseconds % 1000 * 1000000L;
  if (fd != -1 && ::timerfd_settime(fd, 0, &when, nullptr) == -1) {
    ::close(fd);
    fd = -1;
  }
  return fd;
}

// The connecting side of one connection.
class Claim {
 public:
  Claim(const std::string& secret, const Names& names) : secret_(secret), names_(names), mine_(nonce()) {}

  bool hello(int fd) const { return tell(fd, mine_ + proof(secret_, "hello", names_, mine_, "")); }

  // To be called when something has come. kDone: the listener has proven itself, and has been sent this side's proof.
  Step look(int fd) {
    auto step = answer_.read(fd);
    if (step != Step::kDone) {
      return step;
    }
    auto theirs = answer_.nonce();
    if (!answer_.proves(proof(secret_, "listener", names_, mine_, theirs))) {
      return Step::kRefused;
    }
    return tell(fd, proof(secret_, "connector", names_, mine_, theirs)) ? Step::kDone : Step::kClosed;
  }

 private:
  std::string secret_;
  Names names_;
  std::string mine_;
  Incoming answer_{kNonceBytes + kHmacBytes};
};

} // namespace hvtrain
