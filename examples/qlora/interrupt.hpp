// interrupt.hpp — Ctrl-C, SIGTERM, and SIGHUP of a closed terminal ask the running verb to save and leave (exit 6). A
// second Ctrl-C or SIGTERM ends the program at once, as the system does by itself. Signals of failed writes are
// ignored, so that the write reports the error.
#pragma once

#include <csignal>

namespace qlora::program {

/// Set by the handler, read between steps. Nothing else happens inside the handler.
inline volatile std::sig_atomic_t interrupt_requested = 0;

inline bool interrupted() { return interrupt_requested != 0; }

/// SA_RESETHAND gives the second signal back to the system; SA_RESTART is left out so that waits end. SIGHUP keeps its
/// handler: a shell that ends sends it to its foreground job twice.
inline void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = [](int) { interrupt_requested = 1; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  struct sigaction before {};
  sigaction(SIGHUP, nullptr, &before);
  action.sa_flags = 0;
  if (before.sa_handler != SIG_IGN) sigaction(SIGHUP, &action, nullptr);  // nohup ignores it
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
}

}  // namespace qlora::program
