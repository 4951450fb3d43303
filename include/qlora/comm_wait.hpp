// qlora/comm_wait.hpp — waiting for other ranks, for the forms of Comm. Apart from comm.hpp, which every trainer
// includes: <chrono> and <thread> take the compiler longer than the rest of it.
#pragma once

#include <chrono>
#include <thread>

#include "qlora/comm.hpp"

namespace qlora {
inline namespace v0 {
namespace detail {

/// Calls done() until it is true, and the watch every now and then. At first it does not sleep: messages between the
/// ranks of one host take microseconds.
template <class Done>
void wait_for(const Comm::Watch& watch, Done&& done) {
  constexpr double watch_interval = 0.05;  // seconds; launchers leave a process a second after SIGTERM
  const auto began = std::chrono::steady_clock::now();
  double watched = 0.0;
  for (int tries = 0; !done(); ++tries) {
    if (tries < 200) {
      std::this_thread::yield();
      continue;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(tries < 2000 ? 20 : 500));
    const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - began;
    if (!watch || waited.count() < watched + watch_interval) continue;
    watched = waited.count();
    watch(watched);
  }
}

}  // namespace detail
}  // namespace v0
}  // namespace qlora
