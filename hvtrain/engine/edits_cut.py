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
from hvtrain.engine.edits_rounds import LOOP_CC, OPERATIONS

_WHY = ("nothing can end a wait inside init() from outside: a peer that dies or stops after it has published its "
        "address is waited for until gloo's time-out, and only sockets could be shut, by numbers that may be others'")
_DEVICE = "third_party/gloo/gloo/transport/tcp/device.cc"
_STORE = "horovod/common/gloo/http_store.cc"
_REQUEST = "third_party/HTTPRequest/include/HTTPRequest.hpp"

CUT_EDITS: tuple[Edit, ...] = (
    Edit(
        name="cut", file="third_party/gloo/gloo/transport/tcp/loop.h", why=_WHY,
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
        name="cut", file="third_party/gloo/gloo/transport/tcp/loop.h", why=_WHY,
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
        name="cut", file=LOOP_CC, why=_WHY,
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
        name="cut", file=LOOP_CC, why=_WHY,
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
        name="cut", file=_DEVICE, why=_WHY,
        anchor="""\
  loop_->registerDescriptor(fd, events, h);
""",
        replacement="""\
  Round::add(fd); // hvtrain
  loop_->registerDescriptor(fd, events, h);
"""),
    Edit(
        name="cut", file=_DEVICE, why=_WHY,
        anchor="""\
  loop_->unregisterDescriptor(fd, h);
""",
        replacement="""\
  Round::remove(fd); // hvtrain
  loop_->unregisterDescriptor(fd, h);
"""),
    Edit(
        name="cut", file=_REQUEST, why=_WHY,
        anchor="""\
#include <cstddef>
#include <cstdint>
""",
        replacement="""\
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "gloo/transport/tcp/loop.h" // hvtrain
"""),
    Edit(
        name="cut", file=_REQUEST, why=_WHY,
        anchor="""\
                throw std::system_error(getLastError(), std::system_category(), "Failed to create socket");
        }
""",
        replacement="""\
                throw std::system_error(getLastError(), std::system_category(), "Failed to create socket");
            gloo::transport::tcp::Round::add(endpoint); // hvtrain
        }

        // hvtrain: no send, receive or connect waits for longer than this.
        void limit(long milliseconds) noexcept
        {
            timeval time = {};
            time.tv_sec = milliseconds / 1000;
            time.tv_usec = milliseconds % 1000 * 1000;
            setsockopt(endpoint, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof(time));
            setsockopt(endpoint, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof(time));
        }
"""),
    Edit(
        name="cut", file=_REQUEST, why=_WHY,
        anchor="""\
#else
            ::close(endpoint);
""",
        replacement="""\
#else
            gloo::transport::tcp::Round::remove(endpoint); // hvtrain
            ::close(endpoint);
"""),
    Edit(
        name="cut", file=_REQUEST, why=_WHY,
        anchor="""\
            // take the first address from the list
            if (::connect(socket, info->ai_addr, info->ai_addrlen) < 0)
            {
                freeaddrinfo(info);
                throw std::system_error(getLastError(), std::system_category(), "Failed to connect to " + domain + ":" + port);
            }
""",
        replacement="""\
            // hvtrain: connect in slices, since a cut that comes before connect()
            // does not end it, and not for longer than gloo's time-out.
            const auto variable = std::getenv("HOROVOD_GLOO_TIMEOUT_SECONDS");
            const auto seconds = std::max(1L, variable ? std::strtol(variable, nullptr, 10) : 30L);
            const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
            socket.limit(20);

            // take the first address from the list
            while (::connect(socket, info->ai_addr, info->ai_addrlen) < 0)
            {
                const auto error = getLastError();
                if ((error == EINPROGRESS || error == EALREADY || error == EINTR) &&
                    !gloo::transport::tcp::Round::isCut() && std::chrono::steady_clock::now() < deadline)
                    continue;
                if (error == EISCONN)
                    break;
                freeaddrinfo(info);
                throw std::system_error(error, std::system_category(), "Failed to connect to " + domain + ":" + port);
            }
            socket.limit(1000 * seconds);
"""),
    Edit(
        name="cut", file=_STORE, why=_WHY,
        anchor="""\
  for (int retry_cnt = 0; retry_cnt < MAX_RETRY_TIMES; ++retry_cnt) {
""",
        replacement="""\
  for (int retry_cnt = 0; retry_cnt < MAX_RETRY_TIMES; ++retry_cnt) {
    if (gloo::transport::tcp::Round::isCut()) { // hvtrain
      throw std::runtime_error("The round was called off.");
    }
"""),
    Edit(
        name="cut", file=_STORE, why=_WHY,
        anchor="""\
    std::this_thread::sleep_for(
        std::chrono::milliseconds(RETRY_WAITING_TIME_MILLSEC));
""",
        replacement="""\
    gloo::transport::tcp::Round::pause( // hvtrain
        std::chrono::milliseconds(RETRY_WAITING_TIME_MILLSEC));
"""),
    Edit(
        name="cut", file=_STORE, why=_WHY,
        anchor="""\
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
""",
        replacement="""\
    gloo::transport::tcp::Round::pause(std::chrono::milliseconds(10)); // hvtrain
"""),
    Edit(
        name="cut", file=OPERATIONS, why=_WHY,
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
        name="cut", file=OPERATIONS, why=_WHY,
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
