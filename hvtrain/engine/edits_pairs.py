"""Edits of gloo's connections: what happens to one of them ends its own operations, never the process."""

from __future__ import annotations

from hvtrain.engine.edit import Edit
from hvtrain.engine.edits_rounds import LOOP_CC

_PAIR = "third_party/gloo/gloo/transport/tcp/pair.cc"
_WHY_THREAD = ("gloo's own thread throws, and so aborts the process, when a peer is gone between its connection and "
               "the first look at it, or when its data do not fit what is awaited")
_WHY_HALF = ("when a connection breaks, an operation whose message is half sent or half received is not told and "
             "waits until the time-out")

_WHY_FIVE = "a peer's connection is waited for five times as long as the time-out that was asked for"

PAIR_EDITS: tuple[Edit, ...] = (
    Edit(
        name="no-abort", file=_PAIR, why=_WHY_THREAD,
        anchor="""\
  if (state_ == CONNECTED) {
    handleReadWrite(events);
    return;
  }

  if (state_ == LISTENING) {
    handleListening();
    return;
  }

  if (state_ == CONNECTING) {
    handleConnecting();
    return;
  }

  GLOO_ENFORCE(false, "Unexpected state: ", state_);
""",
        replacement="""\
  try { // hvtrain: this is the device's thread, nobody catches above
    if (state_ == CONNECTED) {
      handleReadWrite(events);
      return;
    }

    if (state_ == LISTENING) {
      handleListening();
      return;
    }

    if (state_ == CONNECTING) {
      handleConnecting();
      return;
    }

    GLOO_ENFORCE(false, "Unexpected state: ", state_);
  } catch (const std::exception& ex) {
    if (ex_ == nullptr && state_ != CLOSED) {
      signalException(std::string(ex.what()));
    }
  }
"""),
    Edit(
        name="no-abort", file=LOOP_CC, why=_WHY_THREAD,
        anchor="""\
  auto rv = epoll_ctl(fd_, EPOLL_CTL_DEL, fd, nullptr);
  GLOO_ENFORCE_NE(rv, -1, "epoll_ctl: ", strerror(errno));
""",
        replacement="""\
  auto rv = epoll_ctl(fd_, EPOLL_CTL_DEL, fd, nullptr);
  // hvtrain: a connection that failed before it was registered is not there.
  if (rv == -1 && errno == ENOENT) {
    return;
  }
  GLOO_ENFORCE_NE(rv, -1, "epoll_ctl: ", strerror(errno));
"""),
    Edit(
        name="half-message", file=_PAIR, why=_WHY_HALF,
        anchor="""\
  // Loop through posted send operations.
  for (auto& op : tx_) {
    if (op.buf != nullptr) {
      op.buf->signalException(ex);
    }
  }
""",
        replacement="""\
  // Loop through posted send operations.
  for (auto& op : tx_) {
    if (op.buf != nullptr) {
      op.buf->signalException(ex);
    }
    NonOwningPtr<UnboundBuffer> ubuf(op.ubuf); // hvtrain
    if (ubuf) {
      ubuf->signalException(ex);
    }
  }

  // hvtrain: and the one that is being received.
  NonOwningPtr<UnboundBuffer> receiving(rx_.ubuf);
  if (receiving) {
    receiving->signalException(ex);
  }
"""),
    Edit(
        name="connect-timeout", file="third_party/gloo/gloo/transport/tcp/pair.h", why=_WHY_FIVE,
        anchor="""\
        timeout_ * 5,
""",
        replacement="""\
        timeout_, // hvtrain: not five times that
"""),
)
