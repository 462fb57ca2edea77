"""What is changed in Horovod 0.28.1 before it is compiled.

===============  ================================================================================
init-failure     an exception while the gloo contexts are formed makes ``hvd.init()`` raise
init-again       ``hvd.init()`` can be called again after it has raised
gloo-interface   process sets, the global one too, listen on ``HOROVOD_GLOO_IFACE``
release          ``hvd.shutdown()`` closes the sockets of process sets too, so that peers notice at once,
                 and does not wait 10 ms for each of them
broken-round     a collective that throws ends the loop instead of corrupting the next negotiation
late-tensor      a tensor that is queued while the loop ends gets an error, not silence
unlocked-end     the loop gives the outstanding tensors back without holding a lock: this froze survivors
cut              ``World.cut()``: ends every wait of a round from outside, in ``hvd.init()`` too
one-mesh         one mesh of connections for groups of the same processes, instead of up to four
ask-once         each member's address is asked for once, and no host names
no-abort         what happens to a connection never aborts the process
connect-timeout  a peer's connection is waited for as long as everything else
half-message     an operation whose connection breaks in the middle of a message is told at once
proof            opt-in, ``HVTRAIN_ROUND_SECRET``: both ends of a connection prove their membership first
secret-path      with that secret, the paths of the rendezvous cannot be guessed
told             why a round could not be formed is told, not only logged
ipv6             the rendezvous may have an IPv6 address
own-address      opt-in, ``HVTRAIN_GLOO_ADDRESS``: gloo listens at the address that the worker is known by
idle-wait        opt-in, ``HVTRAIN_IDLE_CYCLE_MS``: no polling while no tensor is outstanding
coded            all-reduces with names of ours are compressed on the wire and added up in float32
host             sums and broadcasts of plain memory, and waiting for them without polling
in-place         an all-reduce in place does not copy its buffer onto itself first
settings-again   ``hvd.init()`` can be called again with a fusion threshold and a cycle time
exit-once        ``hvd.init()`` registers one function to be called at exit, however often it is called
record           the wheel carries ``hvtrain_engine.json``, which says how it was built
===============  ================================================================================
"""

from __future__ import annotations

from hvtrain.engine.edit import Change, Edit
from hvtrain.engine.edits_address import ADDRESS_EDITS
from hvtrain.engine.edits_coded import CODED_EDITS
from hvtrain.engine.edits_cut import CUT_EDITS
from hvtrain.engine.edits_host import HOST_EDITS
from hvtrain.engine.edits_idle import IDLE_EDITS
from hvtrain.engine.edits_ipv6 import IPV6_EDITS
from hvtrain.engine.edits_mesh import MESH_EDITS
from hvtrain.engine.edits_pairs import PAIR_EDITS
from hvtrain.engine.edits_proof import PROOF_EDITS
from hvtrain.engine.edits_queue import QUEUE_EDITS
from hvtrain.engine.edits_rounds import ROUND_EDITS

EDITS: tuple[Change, ...] = (
    *ROUND_EDITS,
    *QUEUE_EDITS,
    *CUT_EDITS,
    *MESH_EDITS,
    *PAIR_EDITS,
    *PROOF_EDITS,
    *IPV6_EDITS,
    *ADDRESS_EDITS,
    *IDLE_EDITS,
    *CODED_EDITS,
    *HOST_EDITS,
    Edit(
        name="in-place", file="horovod/common/ops/gloo_operations.cc",
        why="an all-reduce in place copies its buffer onto itself first: all gradients, every step",
        anchor="""\
    buffer_data = (void*)first_entry.output->data();
    std::memcpy(buffer_data, first_entry.tensor->data(),
                (size_t)first_entry.tensor->size());
    fused_input_data = buffer_data;
  }

  if (prescale_factor != 1.0) {
    // Execute prescaling op
    ScaleBuffer(prescale_factor, entries, fused_input_data, buffer_data, num_elements);
  }

  // Do allreduce.
""",
        replacement="""\
    buffer_data = (void*)first_entry.output->data();
    if (buffer_data != first_entry.tensor->data()) { // hvtrain
      std::memcpy(buffer_data, first_entry.tensor->data(),
                  (size_t)first_entry.tensor->size());
    }
    fused_input_data = buffer_data;
  }

  if (prescale_factor != 1.0) {
    // Execute prescaling op
    ScaleBuffer(prescale_factor, entries, fused_input_data, buffer_data, num_elements);
  }

  // Do allreduce.
"""),
    Edit(
        name="settings-again", file="horovod/common/parameter_manager.cc",
        why="a setting that the environment fixed is out of the vector that the next init() writes it into: a "
            "segmentation fault with both settings, the wrong one of them changed with one",
        anchor="""\
    fixed_values_[variable] = value;
    ResetBayes();
  } else {
""",
        replacement="""\
    fixed_values_[variable] = value;
    ResetBayes();
  } else if (fixed_values_.find(variable) != fixed_values_.end()) {
    fixed_values_[variable] = value; // hvtrain: by a former init()
  } else {
"""),
    Edit(
        name="exit-once", file="horovod/common/basics.py",
        why="a process that has formed 1,000 rounds would shut down 1,000 times at its end",
        anchor="""\
        atexit.register(self.shutdown)
""",
        replacement="""\
        atexit.unregister(self.shutdown)  # hvtrain: not once for each init()
        atexit.register(self.shutdown)
"""),
    Edit(
        name="record", file="setup.py",
        why="the installed engine must say what it was built from, and that must go when it is uninstalled",
        anchor="""\
      packages=find_packages(),
""",
        replacement="""\
      packages=find_packages(),
      package_data={'horovod': ['hvtrain_engine.json']},
"""),
)
