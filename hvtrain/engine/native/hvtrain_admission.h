// Who connects to a rank's listening socket, and which of them is the peer: strangers may come first, and many.
//
//   listener --accept--> has said nothing --hello--> is waited for --proof--> the peer: look() returns its connection
//                              |                          |
//                   another hmac, closed,       another hmac, closed,
//                   a hello heard before, too,  or a newer one comes that has said hello, too
//                   or a newer one comes        and all places are taken
//                   and all places are taken
//
// A stranger does not get beyond the first stage, so that those who say nothing, or say it slowly, only take places
// from each other. Nor does somebody who has recorded a hello and sends it again: each is waited for once, and the
// peer draws another nonce for each connection. All ends with the listening, for which the round's time-out is the limit.
#pragma once

#include <cerrno>
#include <cstring>
#include <deque>
#include <set>
#include <stdexcept>
#include <string>

#include <fcntl.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "hvtrain_proof.h"

namespace hvtrain {

class Admission {
 public:
  static constexpr size_t kPlaces = 8;

  // `listener` stays the caller's, and open for as long as this object lives.
  Admission(int listener, const std::string& secret, const Names& names)
      : listener_(listener), secret_(secret), names_(names), set_(::epoll_create1(EPOLL_CLOEXEC)) {
    if (set_ == -1) {
      throw std::runtime_error(std::string("epoll_create1: ") + std::strerror(errno));
    }
    if (::fcntl(listener_, F_SETFL, ::fcntl(listener_, F_GETFL) | O_NONBLOCK) == -1 || !watch(listener_)) {
      int error = errno;
      ::close(set_);
      throw std::runtime_error(std::string("a listening socket cannot be watched: ") + std::strerror(error));
    }
  }
  ~Admission() {
    while (!guests_.empty()) {
      drop(0);
    }
    ::close(set_);
  }
  Admission(const Admission&) = delete;
  Admission& operator=(const Admission&) = delete;

  // Is readable while look() has something to do.
  int fd() const { return set_; }

  // See who has come, and what has been said. Never waits. Returns the connection of the peer, which is the caller's
  // from then on, or -1. Throws when the listening socket is of no use any more.
  int look() {
    epoll_event events[kPlaces + 1];
    int count = ::epoll_wait(set_, events, kPlaces + 1, 0);
    bool more = false;
    for (int i = 0; i < count; ++i) {
      if (events[i].data.fd == listener_) {
        more = true;
        continue;
      }
      int peer = hear(find(events[i].data.fd));
      if (peer != -1) {
        return peer;
      }
    }
    return more ? take() : -1;
  }

  // For the error message when nobody has proven to be the peer.
  std::string report() const {
    return came_ == 0 ? "nobody has connected"
                      : "of " + std::to_string(came_) + " that have connected none has proven to be rank " +
                            std::to_string(names_.connector) + " of this round, " + std::to_string(wrong_) +
                            " with a wrong or a repeated proof (HVTRAIN_ROUND_SECRET)";
  }

 private:
  struct Guest {
    int fd;
    bool known;    // has said hello, as only a member can
    Incoming said; // its hello, then its proof
    std::string theirs, mine;
  };

  static constexpr int kAtOnce = 64; // the caller's thread has other connections, too

  bool watch(int fd) {
    epoll_event event = {};
    event.events = EPOLLIN;
    event.data.fd = fd;
    return ::epoll_ctl(set_, EPOLL_CTL_ADD, fd, &event) == 0;
  }

  int take() {
    for (int i = 0; i < kAtOnce; ++i) {
      int fd = ::accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd == -1) {
        switch (errno) {
        case EAGAIN:
          return -1;
        case EMFILE: // a place that is given back helps
        case ENFILE:
        case ENOBUFS:
        case ENOMEM:
          if (guests_.empty()) {
            throw std::runtime_error(std::string("accept: ") + std::strerror(errno));
          }
          drop(leastWanted());
          continue;
        case EBADF:
        case EINVAL: // shut, because the round is called off
          throw std::runtime_error(std::string("accept: ") + std::strerror(errno));
        default: // accept(2): errors of the network, and of a connection that has gone again
          continue;
        }
      }
      ++came_;
      if (guests_.size() == kPlaces) {
        drop(leastWanted());
      }
      if (!watch(fd)) {
        ::close(fd);
        continue;
      }
      guests_.push_back(Guest{fd, false, Incoming(kNonceBytes + kHmacBytes), "", ""});
      int peer = hear(guests_.size() - 1); // a member's hello is there when it is accepted, or almost
      if (peer != -1) {
        return peer;
      }
    }
    return -1; // the rest is looked at in the next call
  }

  // The guest's connection if it has proven to be the peer, else -1.
  int hear(size_t at) {
    if (at >= guests_.size()) {
      return -1;
    }
    auto& guest = guests_[at];
    for (;;) {
      auto step = guest.said.read(guest.fd);
      if (step != Step::kDone) {
        if (step == Step::kClosed) {
          drop(at);
        }
        return -1;
      }
      if (guest.known) {
        break;
      }
      guest.theirs = guest.said.nonce();
      if (!guest.said.proves(proof(secret_, "hello", names_, guest.theirs, "")) || !heard_.insert(guest.theirs).second) {
        ++wrong_;
        drop(at);
        return -1;
      }
      guest.known = true;
      guest.said = Incoming(kHmacBytes);
      guest.mine = nonce();
      if (!tell(guest.fd, guest.mine + proof(secret_, "listener", names_, guest.theirs, guest.mine))) {
        drop(at);
        return -1;
      }
    }
    if (!guest.said.proves(proof(secret_, "connector", names_, guest.theirs, guest.mine))) {
      ++wrong_;
      drop(at);
      return -1;
    }
    int peer = guest.fd;
    ::epoll_ctl(set_, EPOLL_CTL_DEL, peer, nullptr);
    guests_.erase(guests_.begin() + static_cast<std::ptrdiff_t>(at));
    return peer;
  }

  size_t find(int fd) const {
    size_t at = 0;
    while (at < guests_.size() && guests_[at].fd != fd) {
      ++at;
    }
    return at;
  }

  // The oldest of those that have said nothing; if there is none, the oldest.
  size_t leastWanted() const {
    for (size_t at = 0; at < guests_.size(); ++at) {
      if (!guests_[at].known) {
        return at;
      }
    }
    return 0;
  }

  void drop(size_t at) {
    int fd = guests_[at].fd;
    ::epoll_ctl(set_, EPOLL_CTL_DEL, fd, nullptr); // a forked process may have the connection, too
    ::shutdown(fd, SHUT_RDWR);
    ::close(fd);
    guests_.erase(guests_.begin() + static_cast<std::ptrdiff_t>(at));
  }

  int listener_;
  std::string secret_;
  Names names_;
  int set_;
  std::deque<Guest> guests_; // the oldest first
  std::set<std::string> heard_; // nonces of true hellos: as many as the peer has made connections
  uint64_t came_ = 0, wrong_ = 0;
};

} // namespace hvtrain
