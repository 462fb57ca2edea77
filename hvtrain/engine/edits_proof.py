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
from hvtrain.engine.edits_proof_pairs import PROOF_PAIR_EDITS, TCP, WHY
from hvtrain.engine.edits_rounds import LOOP_CC, OPERATIONS

_NATIVE = Path(__file__).parent / "native"
_LOOP_H = f"{TCP}/loop.h"
_WHY_PATH = "whoever reaches the rendezvous can read and write the addresses of the ranks"
_WHY_TOLD = "init() says only that it has failed; why goes to the log"

PROOF_EDITS: tuple[Change, ...] = (
    *(Addition(name="proof", file=f"{TCP}/{name}", source=_NATIVE / name, why=WHY)
      for name in ("hvtrain_sha256.h", "hvtrain_proof.h", "hvtrain_admission.h")),
    Edit(
        name="proof", file=_LOOP_H, why=WHY,
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
        name="proof", file=_LOOP_H, why=WHY,
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
        name="proof", file=LOOP_CC, why=WHY,
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
        name="proof", file=LOOP_CC, why=WHY,
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
        name="proof", file=CONTEXT, why=WHY,
        anchor="""\
  auto host_env = std::getenv(HOROVOD_HOSTNAME);
""",
        replacement="""\
  // hvtrain: also for the process sets that are made later
  gloo::transport::tcp::Round::keepSecret(std::getenv("HVTRAIN_ROUND_SECRET"));

  auto host_env = std::getenv(HOROVOD_HOSTNAME);
"""),
    *PROOF_PAIR_EDITS,
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
