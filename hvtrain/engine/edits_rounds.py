"""Edits that keep survivors alive and free when a peer dies, while a round is formed or while it works."""

from __future__ import annotations

from hvtrain.engine.edit import Edit

OPERATIONS = "horovod/common/operations.cc"
QUEUE_H = "horovod/common/tensor_queue.h"
QUEUE_CC = "horovod/common/tensor_queue.cc"
LOOP_CC = "third_party/gloo/gloo/transport/tcp/loop.cc"

_WHY_FAILURE = "a peer that dies during init() makes std::terminate abort every survivor"
_WHY_AGAIN = "after a failed init() the flag stays set and the dead thread is never joined, so no init() works"
_WHY_SLOW = "each connection that is closed waits for a 10 ms tick: a shutdown of 64 ranks takes seconds"

ROUND_EDITS: tuple[Edit, ...] = (
    Edit(
        name="init-failure", file=OPERATIONS, issue="horovod 2907, 2908", why=_WHY_FAILURE,
        anchor="""\
#if HAVE_GLOO
#if HAVE_MPI
  if (global_mpi_context.IsEnabled()) {
    // Initialize gloo context if mpi context is available
""",
        replacement="""\
#if HAVE_GLOO
  try {
#if HAVE_MPI
  if (global_mpi_context.IsEnabled()) {
    // Initialize gloo context if mpi context is available
"""),
    Edit(
        name="init-failure", file=OPERATIONS, issue="horovod 2907, 2908", why=_WHY_FAILURE,
        anchor="""\
    // Initializes global controller
    state.process_set_table.Initialize(global_gloo_context);
  }
#endif // HAVE_GLOO
""",
        replacement="""\
    // Initializes global controller
    state.process_set_table.Initialize(global_gloo_context);
  }
  } catch (const std::exception& ex) {
    // hvtrain: give back what was formed, as the regular shutdown does. The
    // controller may have no rank yet, so the log line goes without one.
    LOG(ERROR) << "Horovod could not be initialized: " << ex.what();
    if (state.control_operation == LibType::GLOO) {
      state.process_set_table.Finalize(global_gloo_context, SHUT_DOWN_ERROR);
    }
#if HAVE_MPI
    if (state.control_operation == LibType::MPI) {
      state.process_set_table.Finalize(global_mpi_context, SHUT_DOWN_ERROR);
    }
#endif // HAVE_MPI
    global_gloo_context.Finalize();
#if HAVE_MPI
    global_mpi_context.Finalize(mpi_ctx_manager);
#endif // HAVE_MPI
#if HAVE_CCL
    if (state.cpu_operation == LibType::CCL) {
      ccl_context.Finalize();
    }
#endif // HAVE_CCL
    // Last: the thread in InitializeHorovodOnce polls this.
    state.initialization_failed = true;
    return;
  }
#endif // HAVE_GLOO
"""),
    Edit(
        name="init-again", file=OPERATIONS, issue="horovod 2908", why=_WHY_AGAIN,
        anchor="""\
    // Reset initialization flag
    horovod_global.initialization_done = false;
""",
        replacement="""\
    // Reset initialization flag
    horovod_global.initialization_done = false;
    horovod_global.initialization_failed = false;
"""),
    Edit(
        name="init-again", file=OPERATIONS, issue="horovod 2908", why=_WHY_AGAIN,
        anchor="""\
  if (horovod_global.initialization_failed) {
    return false;
  }
""",
        replacement="""\
  if (horovod_global.initialization_failed) {
    // hvtrain: end the failed attempt here, so that the next horovod_init()
    // starts afresh without a horovod_shutdown() between.
    static std::mutex failure_mutex;
    std::lock_guard<std::mutex> guard(failure_mutex);
    if (horovod_global.background_thread.joinable()) {
      horovod_global.background_thread.join();
      horovod_global.shut_down = false;
      horovod_global.initialization_done = false;
      horovod_global.initialize_flag.clear();
    }
    return false;
  }
"""),
    Edit(
        name="gloo-interface", file="horovod/common/gloo/gloo_context.cc",
        why="a process set's context, the global one too, listens on the hostname's address, "
            "whatever HOROVOD_GLOO_IFACE says",
        anchor="""\
  assert(global_context.IsEnabled());
""",
        replacement="""\
  assert(global_context.IsEnabled());
  gloo_iface_ = global_context.gloo_iface_;
"""),
    Edit(
        name="release", file="horovod/common/gloo/gloo_context.cc",
        why="a process set's contexts count as not enabled, so shutdown() leaves their sockets and threads "
            "behind and peers that wait for this rank wait until their time-out",
        anchor="""\
  global_ctx = global_context.ctx;
  timeout_ = global_context.timeout_;
""",
        replacement="""\
  enabled_ = true; // hvtrain: so that Finalize() releases the contexts
  global_ctx = global_context.ctx;
  timeout_ = global_context.timeout_;
"""),
    Edit(
        name="release", file=LOOP_CC, why=_WHY_SLOW,
        anchor="""\
    std::unique_lock<std::mutex> lock(m_);
    cv_.wait(lock);
""",
        replacement="""\
    std::unique_lock<std::mutex> lock(m_);
    defer([] {}); // hvtrain: tick now, not after epoll's 10 ms
    cv_.wait(lock);
"""),
    Edit(
        name="release", file=LOOP_CC, why=_WHY_SLOW,
        anchor="""\
    done_ = true;
    loop_->join();
""",
        replacement="""\
    done_ = true;
    defer([] {}); // hvtrain: see above
    loop_->join();
"""),
    Edit(
        name="broken-round", file=OPERATIONS,
        why="after a collective has thrown, the loop negotiates on over the same connections; late data of the "
            "broken collective then meets a receive of another size and gloo's own thread aborts this process",
        anchor="""\
        << "ExecuteOperation Failed";
    status = Status::UnknownError(ex.what());
""",
        replacement="""\
        << "ExecuteOperation Failed";
    status = Status::UnknownError(ex.what());
#if HAVE_GLOO
    if (global_gloo_context.IsEnabled()) {
      // hvtrain: report the failure, then end the loop: what the members send
      // each other from here on does not fit together any more.
      for (auto& e : entries) {
        timeline.End(e.tensor_name, nullptr);
        e.FinishWithCallback(status);
      }
      throw std::runtime_error(std::string("a collective failed: ") +
                               ex.what());
    }
#endif // HAVE_GLOO
"""),
)
