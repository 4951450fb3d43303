// interrupt.hpp — Ctrl-C and SIGTERM. The first asks the running verb to save and leave (exit 6); the second ends the
// program at once, as the system does by itself.
#pragma once

#include <csignal>

namespace qlora::program {

/// Set by the handler, read between steps. Nothing else happens inside the handler.
inline volatile std::sig_atomic_t interrupt_requested = 0;

inline bool interrupted() { return interrupt_requested != 0; }

/// SA_RESETHAND gives the second signal back to the system; SA_RESTART is left out so that waits end.
inline void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = [](int) { interrupt_requested = 1; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

}  // namespace qlora::program
