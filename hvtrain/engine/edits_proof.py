"""The edits behind ``HVTRAIN_ROUND_SECRET``: only members of the round get a connection, and find the rendezvous.

Stock gloo takes the first connection that comes to a rank's port for its peer, whoever that is; and a rank that
connects sends its gradients to whatever listens. With a secret, a new one for each round, both sides prove that they
know it before the connection counts (``native/hvtrain_proof.h``), and who cannot is left at the door
(``native/hvtrain_admission.h``). The paths of the rendezvous begin with a word that is made of the secret. Without the
variable all is as it was. ``horovod_init()`` reads it, and it may be taken out of the environment afterwards.
"""

from __future__ import annotations

from pathlib import Path

from hvtrain.engine.edit import Addition, Change, Edit
from hvtrain.engine.edits_mesh import CONTEXT
from hvtrain.engine.edits_rounds import LOOP_CC, OPERATIONS

_NATIVE = Path(__file__).parent / "native"
_TCP = "third_party/gloo/gloo/transport/tcp"
_LOOP_H, _PAIR_H, _PAIR = f"{_TCP}/loop.h", f"{_TCP}/pair.h", f"{_TCP}/pair.cc"
_WHY = ("whoever connects to a rank's port first is its peer, and can write into the gradients; a port scanner or a "
        "health check breaks the round")
_WHY_PATH = "whoever reaches the rendezvous can read and write the addresses of the ranks"
_WHY_TOLD = "init() says only that it has failed; why goes to the log"

PROOF_EDITS: tuple[Change, ...] = (
    *(Addition(name="proof", file=f"{_TCP}/{name}", source=_NATIVE / name, why=_WHY)
      for name in ("hvtrain_sha256.h", "hvtrain_proof.h", "hvtrain_admission.h")),
    Edit(
        name="proof", file=_LOOP_H, why=_WHY,
        anchor="""\
  // To be called before the socket is closed.
  static void remove(int fd);
};
""",
        replacement="""\
  // To be called before the socket is closed.
  static void remove(int fd);
  // What its members prove their membership by; empty if they need not.
  static void keepSecret(const char* secret);
  static std::string secret();
  // Why the round could not be formed; empty if that is not known.
  static void failed(const std::string& why);
  static std::string failure();
};
"""),
    Edit(
        name="proof", file=_LOOP_H, why=_WHY,
        anchor="""\
#include <chrono>
#include <condition_variable>
#include <cstdint>
""",
        replacement="""\
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <string>
"""),
    Edit(
        name="proof", file=LOOP_CC, why=_WHY,
        anchor="""\
  int64_t number = 0;
  bool cut = false;
};
""",
        replacement="""\
  int64_t number = 0;
  bool cut = false;
  std::string secret;
  std::string failure;
};
"""),
    Edit(
        name="proof", file=LOOP_CC, why=_WHY,
        anchor="""\
  state.cut = false;
  return ++state.number;
}
""",
        replacement="""\
  state.cut = false;
  state.failure.clear();
  return ++state.number;
}

void Round::keepSecret(const char* secret) {
  auto& state = roundState();
  std::lock_guard<std::mutex> guard(state.mutex);
  state.secret = secret == nullptr ? "" : secret;
}

std::string Round::secret() {
  auto& state = roundState();
  std::lock_guard<std::mutex> guard(state.mutex);
  return state.secret;
}

void Round::failed(const std::string& why) {
  auto& state = roundState();
  std::lock_guard<std::mutex> guard(state.mutex);
  state.failure = why;
}

std::string Round::failure() {
  auto& state = roundState();
  std::lock_guard<std::mutex> guard(state.mutex);
  return state.failure;
}
"""),
    Edit(
        name="proof", file=CONTEXT, why=_WHY,
        anchor="""\
  auto host_env = std::getenv(HOROVOD_HOSTNAME);
""",
        replacement="""\
  // hvtrain: also for the process sets that are made later
  gloo::transport::tcp::Round::keepSecret(std::getenv("HVTRAIN_ROUND_SECRET"));

  auto host_env = std::getenv(HOROVOD_HOSTNAME);
"""),
    Edit(
        name="proof", file=_PAIR_H, why=_WHY,
        anchor="""\
  Address self_;
  Address peer_;
  bool is_client_;
""",
        replacement="""\
  Address self_;
  Address peer_;
  bool is_client_;

  // hvtrain: until both sides have proven their membership, a listening pair
  // stays LISTENING and a connecting one CONNECTING. Empty: nothing to prove.
  const std::string secret_ = Round::secret();
  std::unique_ptr<hvtrain::Admission> admission_; // since somebody has come
  std::unique_ptr<hvtrain::Claim> claim_; // since the hello
  int attempts_ = 0;

  void stopListening();
  void dial();
  int admit();
  bool claim();
"""),
    Edit(
        name="proof", file=_PAIR_H, why=_WHY,
        anchor="""\
#include "gloo/transport/tcp/device.h"

namespace gloo {
""",
        replacement="""\
#include "gloo/transport/tcp/device.h"
#include "gloo/transport/tcp/hvtrain_admission.h"

namespace gloo {
"""),
    Edit(
        name="proof", file=_PAIR_H, why=_WHY,
        anchor="""\
        signalAndThrowException(GLOO_ERROR_MSG("Connect timeout ", peer_.str()));
""",
        replacement="""\
        signalAndThrowException(GLOO_ERROR_MSG(
            "Connect timeout ", peer_.str(),
            admission_ ? "; " + admission_->report() : "")); // hvtrain
"""),
    Edit(
        name="proof", file=_PAIR, why=_WHY,
        anchor="""\
  // First destroy listening socket.
  device_->unregisterDescriptor(fd_, this);
  ::close(fd_);

  // Create new socket to connect to peer.
""",
        replacement="""\
  // First destroy listening socket.
  stopListening();
  dial();

  // Wait for connection to complete
  waitUntilConnected(lock, true);
}

// hvtrain: connects to peer_. The pair's mutex is held.
void Pair::dial() {
  const auto& peerAddr = peer_.getSockaddr();
  const socklen_t addrlen = peerAddr.ss_family == AF_INET
      ? sizeof(struct sockaddr_in)
      : sizeof(struct sockaddr_in6);
  int rv;

  // Create new socket to connect to peer.
"""),
    Edit(
        name="proof", file=_PAIR, why=_WHY,
        anchor="""\
  device_->registerDescriptor(fd_, EPOLLIN | EPOLLOUT, this);

  // Wait for connection to complete
  waitUntilConnected(lock, true);
}
""",
        replacement="""\
  device_->registerDescriptor(fd_, EPOLLIN | EPOLLOUT, this);
}

// hvtrain: the listening socket, and whoever waits behind it, are given up.
// The pair's mutex is held.
void Pair::stopListening() {
  if (admission_) {
    device_->unregisterDescriptor(admission_->fd(), this);
    admission_.reset();
    Round::remove(fd_);
  } else {
    device_->unregisterDescriptor(fd_, this);
  }
  ::close(fd_);
  fd_ = FD_INVALID;
}

// hvtrain: the connection of the peer if it has proven to be that, else -1.
// Whoever comes is waited for by one descriptor, so that the device's thread
// calls each pair once at most with what it has found.
int Pair::admit() {
  if (!admission_) {
    const hvtrain::Names names{
        (uint32_t)rank_, (uint32_t)context_->rank, self_.getSockaddr()};
    admission_.reset(new hvtrain::Admission(fd_, secret_, names));
    device_->unregisterDescriptor(fd_, this);
    Round::add(fd_);
    device_->registerDescriptor(admission_->fd(), EPOLLIN, this);
  }
  return admission_->look();
}

// hvtrain: whether the listening side has proven its membership, and has been
// sent this side's proof.
bool Pair::claim() {
  // Strangers may have taken the listener's places at that moment.
  constexpr int kMostAttempts = 16;
  auto step = hvtrain::Step::kMore;
  if (!claim_) {
    const hvtrain::Names names{
        (uint32_t)context_->rank, (uint32_t)rank_, peer_.getSockaddr()};
    claim_.reset(new hvtrain::Claim(secret_, names));
    if (claim_->hello(fd_)) {
      device_->registerDescriptor(fd_, EPOLLIN, this);
    } else {
      step = hvtrain::Step::kClosed;
    }
  } else {
    step = claim_->look(fd_);
  }
  if (step == hvtrain::Step::kRefused) {
    signalException(GLOO_ERROR_MSG(
        "connect ", peer_.str(), ": what listens there has not proven to be ",
        "rank ", rank_, " of this round (HVTRAIN_ROUND_SECRET)"));
  } else if (step == hvtrain::Step::kClosed && ++attempts_ == kMostAttempts) {
    signalException(GLOO_ERROR_MSG(
        "connect ", peer_.str(), ": rank ", rank_, " does not take this ",
        "process for rank ", context_->rank, " of its round, or is gone ",
        "(HVTRAIN_ROUND_SECRET)"));
  } else if (step == hvtrain::Step::kClosed) {
    device_->unregisterDescriptor(fd_, this);
    ::close(fd_);
    fd_ = FD_INVALID;
    claim_.reset();
    dial();
  }
  return step == hvtrain::Step::kDone;
}
"""),
    Edit(
        name="proof", file=_PAIR, why=_WHY,
        anchor="""\
  rv = accept(fd_, (struct sockaddr*)&addr, &addrlen);

  // Close the listening file descriptor whether we've successfully connected
  // or run into an error and will throw an exception.
  device_->unregisterDescriptor(fd_, this);
  ::close(fd_);
  fd_ = FD_INVALID;
""",
        replacement="""\
  if (secret_.empty()) {
    rv = accept(fd_, (struct sockaddr*)&addr, &addrlen);
  } else { // hvtrain
    rv = admit();
    if (rv == -1) {
      return;
    }
  }

  // Close the listening file descriptor whether we've successfully connected
  // or run into an error and will throw an exception.
  stopListening();
"""),
    Edit(
        name="proof", file=_PAIR, why=_WHY,
        anchor="""\
  // Verify that connecting was successful
  rv = getsockopt(fd_, SOL_SOCKET, SO_ERROR, &optval, &optlen);
  GLOO_ENFORCE_NE(rv, -1);
  if (optval != 0) {
    signalException(
        GLOO_ERROR_MSG("connect ", peer_.str(), ": ", strerror(optval)));
    return;
  }
""",
        replacement="""\
  if (!claim_) { // hvtrain: else it was
    // Verify that connecting was successful
    rv = getsockopt(fd_, SOL_SOCKET, SO_ERROR, &optval, &optlen);
    GLOO_ENFORCE_NE(rv, -1);
    if (optval != 0) {
      signalException(
          GLOO_ERROR_MSG("connect ", peer_.str(), ": ", strerror(optval)));
      return;
    }
  }
  if (!secret_.empty()) { // hvtrain
    if (!claim()) {
      return;
    }
    claim_.reset();
  }
"""),
    Edit(
        name="proof", file=_PAIR, why=_WHY,
        anchor="""\
        // The pair may be in the LISTENING state when it is destructed.
        if (fd_ != FD_INVALID) {
          device_->unregisterDescriptor(fd_, this);
          ::close(fd_);
          fd_ = FD_INVALID;
        }
        break;
""",
        replacement="""\
        // The pair may be in the LISTENING state when it is destructed.
        if (fd_ != FD_INVALID) {
          stopListening(); // hvtrain
        }
        break;
"""),
    Edit(
        name="secret-path", file="horovod/common/gloo/http_store.h", why=_WHY_PATH,
        anchor="""\
    url_prefix_ +=
        "http://" + server_ip + ":" + std::to_string(port) + "/" + scope + "/";
""",
        replacement="""\
    url_prefix_ += "http://" + server_ip + ":" + std::to_string(port) + "/";
    // hvtrain: whoever does not know the round's secret finds nothing
    auto secret = gloo::transport::tcp::Round::secret();
    if (!secret.empty()) {
      url_prefix_ += hvtrain::rendezvousPath(secret) + "/";
    }
    url_prefix_ += scope + "/";
"""),
    Edit(
        name="secret-path", file="horovod/common/gloo/http_store.h", why=_WHY_PATH,
        anchor="""\
#include "gloo_store.h"
""",
        replacement="""\
#include "gloo/transport/tcp/hvtrain_proof.h" // hvtrain
#include "gloo/transport/tcp/loop.h"
#include "gloo_store.h"
"""),
    Edit(
        name="told", file=OPERATIONS, why=_WHY_TOLD,
        anchor="""\
    LOG(ERROR) << "Horovod could not be initialized: " << ex.what();
""",
        replacement="""\
    LOG(ERROR) << "Horovod could not be initialized: " << ex.what();
    gloo::transport::tcp::Round::failed(ex.what());
"""),
    Edit(
        name="told", file=OPERATIONS, why=_WHY_TOLD,
        anchor="""\
int horovod_round_cut(int64_t number) {
""",
        replacement="""\
// Why the last round could not be formed, as much of it as there is room for.
void horovod_round_failure(char* reason, int64_t room) {
  auto text = gloo::transport::tcp::Round::failure();
  std::strncpy(reason, text.c_str(), (size_t)room - 1);
  reason[room - 1] = '\\0';
}

int horovod_round_cut(int64_t number) {
"""),
)
