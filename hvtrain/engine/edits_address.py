"""Edits about addresses: gloo listens at the one that the worker is known by.

gloo takes the first address of an interface, which on a host with several is chance: another subnet, or an IPv6 address
that holds on its own link only. A worker knows which of its addresses reaches the coordinator, and says it in
``HVTRAIN_GLOO_ADDRESS``; without that everything is as it was.
"""

from __future__ import annotations

from hvtrain.engine.edit import Edit

_DEVICE = "third_party/gloo/gloo/transport/tcp/device.cc"
_WHY_OWN = ("an interface's first address is taken, though the others may only be able to reach its second, or the first "
            "is an IPv6 address that holds on its own link only")

ADDRESS_EDITS: tuple[Edit, ...] = (
    Edit(
        name="own-address", file=_DEVICE, why=_WHY_OWN,
        anchor="""\
  if (attr.iface.size() > 0) {
    // Initialize attributes using network interface name
    lookupAddrForIface(attr);
""",
        replacement="""\
  const char* own = std::getenv("HVTRAIN_GLOO_ADDRESS"); // hvtrain
  if (own != nullptr && *own != '\\0') {
    attr.hostname = own;
    lookupAddrForHostname(attr);
  } else if (attr.iface.size() > 0) {
    // Initialize attributes using network interface name
    lookupAddrForIface(attr);
"""),
    Edit(
        name="own-address", file=_DEVICE, why=_WHY_OWN,
        anchor="""\
#include <array>
#include <ifaddrs.h>
""",
        replacement="""\
#include <array>
#include <cstdlib>
#include <ifaddrs.h>
"""),
)
