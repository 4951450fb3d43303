// signals.hpp — what the program makes of SIGTERM when a launcher sends it.
#pragma once

namespace qlora::program {

/// From now on SIGTERM asks to stop however often it comes. Launchers send it to all processes as soon as one has
/// ended, which may have been told to stop before and be about to leave; they kill a while later.
void expect_launcher_signals();

}  // namespace qlora::program
