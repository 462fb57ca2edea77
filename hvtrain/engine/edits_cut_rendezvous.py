"""The part of the edit "cut" that is about the rendezvous: its client's sockets, pauses and time-outs."""

from __future__ import annotations

from hvtrain.engine.edit import Edit

WHY_CUT = ("nothing can end a wait inside init() from outside: a peer that dies or stops after it has published its "
           "address is waited for until gloo's time-out, and only sockets could be shut, by numbers that others may "
           "have by then")
_STORE = "horovod/common/gloo/http_store.cc"
_REQUEST = "third_party/HTTPRequest/include/HTTPRequest.hpp"

RENDEZVOUS_CUT_EDITS: tuple[Edit, ...] = (
    Edit(
        name="cut", file=_REQUEST, why=WHY_CUT,
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
        name="cut", file=_REQUEST, why=WHY_CUT,
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
        name="cut", file=_REQUEST, why=WHY_CUT,
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
        name="cut", file=_REQUEST, why=WHY_CUT,
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
        name="cut", file=_STORE, why=WHY_CUT,
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
        name="cut", file=_STORE, why=WHY_CUT,
        anchor="""\
    std::this_thread::sleep_for(
        std::chrono::milliseconds(RETRY_WAITING_TIME_MILLSEC));
""",
        replacement="""\
    gloo::transport::tcp::Round::pause( // hvtrain
        std::chrono::milliseconds(RETRY_WAITING_TIME_MILLSEC));
"""),
    Edit(
        name="cut", file=_STORE, why=WHY_CUT,
        anchor="""\
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
""",
        replacement="""\
    gloo::transport::tcp::Round::pause(std::chrono::milliseconds(10)); // hvtrain
"""),
)
