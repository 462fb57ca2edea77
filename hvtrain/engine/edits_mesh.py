"""Edits that make forming a round quick: fewer meshes of connections, and fewer questions to the rendezvous.

Horovod forms six contexts in each ``init()``, each a full mesh with a rendezvous of its own: world, host and cross,
once for the process and once more for the process set that holds all processes. On one host that is four times the
same mesh, and two of one process that need none.
"""

from __future__ import annotations

from hvtrain.engine.edit import Edit

CONTEXT = "horovod/common/gloo/gloo_context.cc"
_STORE = "horovod/common/gloo/http_store.cc"
_WHY_MESH = ("init() makes the same mesh of connections up to four times, and one event loop thread per device: "
             "four times the time, the sockets and the load of the rendezvous")
_WHY_RENDEZVOUS = ("each address is asked for twice, and before it every other rank's host name, for a local rank that "
                   "nothing reads: more than half of all requests")

MESH_EDITS: tuple[Edit, ...] = (
    Edit(
        name="one-mesh", file=CONTEXT, why=_WHY_MESH,
        anchor="""\
  if (server_addr_env != nullptr) {
    std::string server_addr = server_addr_env;
    store.reset(new HTTPStore(server_addr, server_port, prefix, rank));
""",
        replacement="""\
  if (server_addr_env != nullptr && size > 1) { // hvtrain: alone, there is nobody to find
    std::string server_addr = server_addr_env;
    store.reset(new HTTPStore(server_addr, server_port, prefix, rank));
"""),
    Edit(
        name="one-mesh", file=CONTEXT, why=_WHY_MESH,
        anchor="""\
  local_ctx = Rendezvous(HOROVOD_GLOO_LOCAL_PREFIX + hostname_,
                         rendezvous_addr_env, rendezvous_port,
                         local_rank, local_size, dev, timeout_);
  LOG(DEBUG) << "Local Gloo context initialized.";

  cross_ctx = Rendezvous(HOROVOD_GLOO_CROSS_PREFIX + std::to_string(local_rank),
                         rendezvous_addr_env, rendezvous_port,
                         cross_rank, cross_size, dev, timeout_);
""",
        replacement="""\
  // hvtrain: a group that is the whole world, in the world's order, needs no
  // mesh of its own. All processes must see it so, or some would wait.
  std::vector<int> whole{local_size == size && local_rank == rank,
                         cross_size == size && cross_rank == rank};
  std::vector<int> all_whole(2 * (size_t)size);
  {
    gloo::AllgatherOptions opts(ctx);
    opts.setInput(whole.data(), 2);
    opts.setOutput(all_whole.data(), all_whole.size());
    gloo::allgather(opts);
  }
  for (std::size_t i = 0; i < all_whole.size(); ++i) {
    whole[i % 2] &= all_whole[i];
  }

  local_ctx = whole[0] ? ctx
                       : Rendezvous(HOROVOD_GLOO_LOCAL_PREFIX + hostname_,
                                    rendezvous_addr_env, rendezvous_port,
                                    local_rank, local_size, dev, timeout_);
  LOG(DEBUG) << "Local Gloo context initialized.";

  cross_ctx = whole[1] ? ctx
                       : Rendezvous(HOROVOD_GLOO_CROSS_PREFIX +
                                        std::to_string(local_rank),
                                    rendezvous_addr_env, rendezvous_port,
                                    cross_rank, cross_size, dev, timeout_);
"""),
    Edit(
        name="one-mesh", file=CONTEXT, why=_WHY_MESH,
        anchor="""\
  attr device_attr;
  device_attr.iface = gloo_iface_;
  device_attr.ai_family = AF_UNSPEC;
  auto dev = CreateDevice(device_attr);

  enabled_ = true; // hvtrain: so that Finalize() releases the contexts
""",
        replacement="""\
  if (registered_ranks.empty()) {
    // hvtrain: the set of all processes. One thread uses all contexts, one
    // after the other, so they can be the process's own.
    enabled_ = true;
    global_ctx = ctx = global_context.ctx;
    local_ctx = global_context.local_ctx;
    cross_ctx = global_context.cross_ctx;
    timeout_ = global_context.timeout_;
    hostname_ = global_context.hostname_;
    return;
  }

  attr device_attr;
  device_attr.iface = gloo_iface_;
  device_attr.ai_family = AF_UNSPEC;
  auto dev = CreateDevice(device_attr);

  enabled_ = true; // hvtrain: so that Finalize() releases the contexts
"""),
    Edit(
        name="ask-once", file="third_party/gloo/gloo/rendezvous/context.cc", why=_WHY_RENDEZVOUS,
        anchor="""\
  // Get Hostname using syscall
  char hostname[HOSTNAME_MAX_SIZE]; // NOLINT
  int rv = gethostname(hostname, HOSTNAME_MAX_SIZE);
  if (rv != 0) {
    throw std::system_error(errno, std::system_category());
  }

  auto localHostName = std::string(hostname);
  // Add global rank <> hostname pair to the Store. This store is then passed
  // to Gloo when connectFullMesh is called, where Gloo uses the global rank <>
  // hostname mapping to compute local ranks.
  std::string localKey("rank_" + std::to_string(rank));
  const std::vector<char> value(localHostName.begin(), localHostName.end());
  store.set(localKey, value);

  for (int i = 0; i < size; i++) {
    if (i == rank) {
      break;
    }

    std::string key("rank_" + std::to_string(i));
    auto val = store.get(key);
    auto hostName = std::string((const char*)val.data(), val.size());

    if (hostName == localHostName) {
      localRank++;
    }
  }

""",
        replacement="""\
"""),
    Edit(
        name="ask-once", file=_STORE, why=_WHY_RENDEZVOUS,
        anchor="""\
std::vector<char> HTTPStore::get(const std::string& key) {
""",
        replacement="""\
std::vector<char> HTTPStore::get(const std::string& key) {
  auto found = found_.find(key);
  if (found != found_.end()) {
    return found->second;
  }
"""),
    Edit(
        name="ask-once", file=_STORE, why=_WHY_RENDEZVOUS,
        anchor="""\
    if (!HTTP_GET(key, result)) {
      return false;
    }
""",
        replacement="""\
    if (!HTTP_GET(key, result)) {
      return false;
    }
    found_[key] = result;
"""),
    Edit(
        name="ask-once", file="horovod/common/gloo/http_store.h", why=_WHY_RENDEZVOUS,
        anchor="""\
  std::string url_prefix_;
  int rank_;
""",
        replacement="""\
  std::string url_prefix_;
  int rank_;
  // hvtrain: what wait() has found, for get(). Values do not change.
  std::map<std::string, std::vector<char>> found_;
"""),
)
