"""The edits behind rounds over IPv6: the rendezvous may have such an address. The ranks' own: edits_address.py."""

from __future__ import annotations

from hvtrain.engine.edit import Edit

_REQUEST = "third_party/HTTPRequest/include/HTTPRequest.hpp"
_WHY = "the client of the rendezvous takes an IPv6 address for a name and a port"

IPV6_EDITS: tuple[Edit, ...] = (
    Edit(
        name="ipv6", file="horovod/common/gloo/http_store.h", why=_WHY,
        anchor="""\
    url_prefix_ += "http://" + server_ip + ":" + std::to_string(port) + "/";
""",
        replacement="""\
    bool six = server_ip.find(':') != std::string::npos && server_ip[0] != '[';
    url_prefix_ += "http://" + (six ? "[" + server_ip + "]" : server_ip) + ":" +
                   std::to_string(port) + "/";
"""),
    Edit(
        name="ipv6", file=_REQUEST, why=_WHY,
        anchor="""\
            const auto portPosition = domain.find(':');
""",
        replacement="""\
            if (domain[0] == '[' && domain.find(']') != std::string::npos) // hvtrain: [fd00::1]:80
            {
                const auto end = domain.find(']');
                port = end + 2 < domain.size() ? domain.substr(end + 2) : "80";
                domain = domain.substr(1, end - 1);
                internetProtocol = InternetProtocol::V6;
                return;
            }

            const auto portPosition = domain.find(':');
"""),
    Edit(
        name="ipv6", file=_REQUEST, why=_WHY,
        anchor="""\
            requestData += "Host: " + domain + "\\r\\n";
""",
        replacement="""\
            const bool six = internetProtocol == InternetProtocol::V6; // hvtrain
            requestData += "Host: " + (six ? "[" + domain + "]" : domain) + "\\r\\n";
"""),
)
