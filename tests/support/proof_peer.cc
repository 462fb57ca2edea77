// A listener or connector as the engine's pairs are, for tests: the headers alone, without gloo and its threads.
//
//   proof_peer vectors                                              prints digests of what comes on standard input
//   proof_peer listen CONNECTOR LISTENER       < secret             prints its port, then the report each time somebody
//                                                                   has come, then what its peer says to it
//   proof_peer connect CONNECTOR LISTENER PORT < secret             prints done, closed or refused
#include "hvtrain_admission.h"

#include <iostream>

#include <arpa/inet.h>
#include <poll.h>

using namespace hvtrain;

static sockaddr_storage address(int port) {
  sockaddr_storage storage = {};
  auto four = reinterpret_cast<sockaddr_in*>(&storage);
  four->sin_family = AF_INET;
  four->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  four->sin_port = htons(static_cast<uint16_t>(port));
  return storage;
}

static int listener(const std::string& secret, uint32_t connector, uint32_t listener) {
  auto where = address(0);
  int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  socklen_t size = sizeof(sockaddr_in);
  ::bind(fd, reinterpret_cast<sockaddr*>(&where), size);
  ::listen(fd, 1024);
  ::getsockname(fd, reinterpret_cast<sockaddr*>(&where), &size);
  Admission admission(fd, secret, Names{connector, listener, where});
  std::cout << ntohs(reinterpret_cast<sockaddr_in*>(&where)->sin_port) << std::endl;
  for (;;) {
    pollfd wait = {admission.fd(), POLLIN, 0};
    ::poll(&wait, 1, -1);
    int peer = admission.look();
    std::cout << admission.report() << std::endl;
    if (peer != -1) {
      pollfd more = {peer, POLLIN, 0};
      ::poll(&more, 1, 1000);
      char text[100] = {};
      auto got = ::recv(peer, text, sizeof text - 1, MSG_DONTWAIT);
      std::cout << "peer: " << (got < 0 ? "" : text) << std::endl;
      return 0;
    }
  }
}

static int connector(const std::string& secret, uint32_t connector, uint32_t listener, int port) {
  auto where = address(port);
  int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  ::connect(fd, reinterpret_cast<sockaddr*>(&where), sizeof(sockaddr_in));
  Claim claim(secret, Names{connector, listener, where});
  auto step = claim.hello(fd) ? Step::kMore : Step::kClosed;
  while (step == Step::kMore) {
    pollfd wait = {fd, POLLIN, 0};
    ::poll(&wait, 1, -1);
    step = claim.look(fd);
  }
  std::cout << (step == Step::kDone ? "done" : step == Step::kClosed ? "closed" : "refused") << std::endl;
  return 0;
}

// Pairs of lines in hexadecimal, a key ("-": none, the plain hash) and a message: a digest for each.
static int vectors() {
  auto bytes = [](const std::string& text) {
    std::string found;
    for (size_t i = 0; i + 1 < text.size(); i += 2) {
      found += static_cast<char>(std::stoi(text.substr(i, 2), nullptr, 16));
    }
    return found;
  };
  std::string key, message;
  while (std::getline(std::cin, key) && std::getline(std::cin, message)) {
    if (key == "-") {
      Sha256 hash;
      hash.add(bytes(message));
      std::cout << hexadecimal(hash.end()) << "\n";
    } else {
      std::cout << hexadecimal(hmac(bytes(key), bytes(message))) << "\n";
    }
  }
  uint8_t a[] = {1, 2, 3}, b[] = {1, 2, 4};
  std::cout << same(a, a, 3) << same(a, b, 3) << same(a, b, 2) << same(a, b, 0) << "\n"
            << rendezvousPath("secret") << "\n";
  return 0;
}

int main(int count, char** words) {
  std::string what = words[1], secret;
  if (what == "vectors") {
    return vectors();
  }
  std::getline(std::cin, secret);
  auto rank = [&](int at) { return static_cast<uint32_t>(std::stoul(words[at])); };
  return count == 4 ? listener(secret, rank(2), rank(3)) : connector(secret, rank(2), rank(3), std::stoi(words[4]));
}
