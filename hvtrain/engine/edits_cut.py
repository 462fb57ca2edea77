"""The edit behind ``World.cut()``: another thread ends whatever a round waits for, in ``hvd.init()`` too.

The library keeps the file descriptors of its own sockets: gloo's from when its event loop takes them until it gives
them back, the rendezvous client's for as long as they are open. ``horovod_round_begin()`` starts a round and returns
its number, ``horovod_round_cut(number)`` shuts that round's sockets down; a socket that is opened afterwards is shut
at once, and the client's pauses end. So a wait for a peer's connection, its data or its address raises within
milliseconds. Shutting and closing exclude each other, and a number of a former round does nothing: no socket that
belongs to somebody else is ever shut, whoever has got the file descriptor since.
"""

from __future__ import annotations

from hvtrain.engine.edit import Edit
from hvtrain.engine.edits_cut_rendezvous import RENDEZVOUS_CUT_EDITS, WHY_CUT
from hvtrain.engine.edits_rounds import LOOP_CC, OPERATIONS

_DEVICE = "third_party/gloo/gloo/transport/tcp/device.cc"

CUT_EDITS: tuple[Edit, ...] = (
    Edit(
        name="cut", file="third_party/gloo/gloo/transport/tcp/loop.h", why=WHY_CUT,
        anchor="""\
class Loop;

// Functions can be deferred to the epoll(2) thread through the this
""",
        replacement="""\
class Loop;

// hvtrain: the sockets of this process's round, and whether it has been cut.
// All functions may be called by any thread at any time.
class Round final {
 public:
  // A new round, that is not cut. Returns its number.
  static int64_t begin();
  // Shut the sockets of this round, those to come too. Returns how many there
  // were; 0, and nothing happens, if it is not the current round any more.
  static int cut(int64_t number);
  static bool isCut();
  // Sleep, but not longer than until the round is cut.
  static void pause(std::chrono::milliseconds time);
  // The caller has opened this socket; it is shut at once in a cut round.
  static void add(int fd);
  // To be called before the socket is closed.
  static void remove(int fd);
};

// Functions can be deferred to the epoll(2) thread through the this
"""),
    Edit(
        name="cut", file="third_party/gloo/gloo/transport/tcp/loop.h", why=WHY_CUT,
        anchor="""\
#include <atomic>
#include <condition_variable>
""",
        replacement="""\
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
"""),
    Edit(
        name="cut", file=LOOP_CC, why=WHY_CUT,
        anchor="""\
Deferrables::Deferrables() {
""",
        replacement="""\
namespace {

struct RoundState {
  std::mutex mutex;
  std::condition_variable condition;
  std::set<int> sockets;
  int64_t number = 0;
  bool cut = false;
};

// Never destroyed: threads may outlive static destruction.
RoundState& roundState() {
  static RoundState* state = new RoundState();
  return *state;
}

} // namespace

int64_t Round::begin() {
  auto& state = roundState();
  std::lock_guard<std::mutex> guard(state.mutex);
  state.cut = false;
  return ++state.number;
}

int Round::cut(int64_t number) {
  auto& state = roundState();
  std::lock_guard<std::mutex> guard(state.mutex);
  if (number != state.number) {
    return 0;
  }
  state.cut = true;
  state.condition.notify_all();
  // Wakes whoever waits: for data, for a connection to be accepted, and for
  // one to be made. Neither this process nor the peer needs to do anything.
  for (auto fd : state.sockets) {
    ::shutdown(fd, SHUT_RDWR);
  }
  return static_cast<int>(state.sockets.size());
}

bool Round::isCut() {
  auto& state = roundState();
  std::lock_guard<std::mutex> guard(state.mutex);
  return state.cut;
}

void Round::pause(std::chrono::milliseconds time) {
  auto& state = roundState();
  std::unique_lock<std::mutex> lock(state.mutex);
  state.condition.wait_for(lock, time, [&state] { return state.cut; });
}

void Round::add(int fd) {
  auto& state = roundState();
  std::lock_guard<std::mutex> guard(state.mutex);
  state.sockets.insert(fd);
  if (state.cut) {
    ::shutdown(fd, SHUT_RDWR);
  }
}

void Round::remove(int fd) {
  auto& state = roundState();
  std::lock_guard<std::mutex> guard(state.mutex);
  state.sockets.erase(fd);
}

Deferrables::Deferrables() {
"""),
    Edit(
        name="cut", file=LOOP_CC, why=WHY_CUT,
        anchor="""\
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include <array>
""",
        replacement="""\
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <set>
"""),
    Edit(
        name="cut", file=_DEVICE, why=WHY_CUT,
        anchor="""\
  loop_->registerDescriptor(fd, events, h);
""",
        replacement="""\
  Round::add(fd); // hvtrain
  loop_->registerDescriptor(fd, events, h);
"""),
    Edit(
        name="cut", file=_DEVICE, why=WHY_CUT,
        anchor="""\
  loop_->unregisterDescriptor(fd, h);
""",
        replacement="""\
  Round::remove(fd); // hvtrain
  loop_->unregisterDescriptor(fd, h);
"""),
    *RENDEZVOUS_CUT_EDITS,
    Edit(
        name="cut", file=OPERATIONS, why=WHY_CUT,
        anchor="""\
int horovod_is_initialized() {
""",
        replacement="""\
#if HAVE_GLOO
// hvtrain: see gloo/transport/tcp/loop.h
int64_t horovod_round_begin() { return gloo::transport::tcp::Round::begin(); }

int horovod_round_cut(int64_t number) {
  return gloo::transport::tcp::Round::cut(number);
}
#endif // HAVE_GLOO

int horovod_is_initialized() {
"""),
    Edit(
        name="cut", file=OPERATIONS, why=WHY_CUT,
        anchor="""\
#if HAVE_GLOO
#include "gloo/gloo_controller.h"
""",
        replacement="""\
#if HAVE_GLOO
#include "gloo/transport/tcp/loop.h" // hvtrain
#include "gloo/gloo_controller.h"
"""),
)
