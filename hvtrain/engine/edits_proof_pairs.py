"""The part of the edit "proof" in gloo's connections: a listening pair admits its peer and nobody else, a connecting one
says nothing before it knows whom it has reached."""

from __future__ import annotations

from hvtrain.engine.edit import Edit

TCP = "third_party/gloo/gloo/transport/tcp"
_PAIR_H, _PAIR = f"{TCP}/pair.h", f"{TCP}/pair.cc"
WHY = ("whoever connects to a rank's port first is its peer, and can write into the gradients; a port scanner or a "
       "health check breaks the round")

PROOF_PAIR_EDITS: tuple[Edit, ...] = (
    Edit(
        name="proof", file=_PAIR_H, why=WHY,
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
  bool pausing_ = false; // fd_ is a timer, the next attempt follows

  void stopListening();
  void dial();
  void dialAgain(int milliseconds);
  int admit();
  bool claim();
"""),
    Edit(
        name="proof", file=_PAIR_H, why=WHY,
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
        name="proof", file=_PAIR_H, why=WHY,
        anchor="""\
        signalAndThrowException(GLOO_ERROR_MSG("Connect timeout ", peer_.str()));
""",
        replacement="""\
        signalAndThrowException(GLOO_ERROR_MSG(
            "Connect timeout ", peer_.str(),
            admission_ ? "; " + admission_->report() : "")); // hvtrain
"""),
    Edit(
        name="proof", file=_PAIR, why=WHY,
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
        name="proof", file=_PAIR, why=WHY,
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
  // Strangers may have taken the listener's places at that moment: 16 attempts
  // take 1.3 s, and a round that is called off is known after the pause.
  constexpr int kMostAttempts = 16, kLongestPause = 128; // milliseconds
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
  if (step == hvtrain::Step::kClosed && Round::isCut()) {
    // On one host every attempt succeeds, and is shut as this one was.
    signalException(GLOO_ERROR_MSG(
        "connect ", peer_.str(), ": the round has been called off"));
  } else if (step == hvtrain::Step::kRefused) {
    signalException(GLOO_ERROR_MSG(
        "connect ", peer_.str(), ": what listens there has not proven to be ",
        "rank ", rank_, " of this round (HVTRAIN_ROUND_SECRET)"));
  } else if (step == hvtrain::Step::kClosed && ++attempts_ == kMostAttempts) {
    signalException(GLOO_ERROR_MSG(
        "connect ", peer_.str(), ": rank ", rank_, " does not take this ",
        "process for rank ", context_->rank, " of its round, or is gone ",
        "(HVTRAIN_ROUND_SECRET)"));
  } else if (step == hvtrain::Step::kClosed) {
    claim_.reset();
    dialAgain(std::min(1 << attempts_, kLongestPause));
  }
  return step == hvtrain::Step::kDone;
}

// hvtrain: gives up what fd_ is, and connects after this time. Is called by
// the device's thread, which must neither wait nor see an exception.
void Pair::dialAgain(int milliseconds) {
  device_->unregisterDescriptor(fd_, this);
  ::close(fd_);
  fd_ = milliseconds > 0 ? hvtrain::timer(milliseconds) : FD_INVALID;
  pausing_ = fd_ != FD_INVALID;
  if (pausing_) {
    device_->registerDescriptor(fd_, EPOLLIN, this);
    return;
  }
  try {
    dial();
  } catch (const ::gloo::IoException&) {
    // Whoever waits for this pair has been told.
  }
}
"""),
    Edit(
        name="proof", file=_PAIR, why=WHY,
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
        name="proof", file=_PAIR, why=WHY,
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
  if (pausing_) { // hvtrain
    dialAgain(0);
    return;
  }
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
        name="proof", file=_PAIR, why=WHY,
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
)
