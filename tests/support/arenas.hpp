// arenas.hpp — trainers whose arenas must hold exactly what the memory plan says, whatever the backend.
#pragma once

#include <doctest/doctest.h>

#include "qlora/model/network.hpp"
#include "qlora/model/plan.hpp"
#include "qlora/train/trainer.hpp"

namespace arenas {

using namespace qlora;

/// Calls `use` with options that differ in everything that a plan depends on, the model apart.
template <class Use>
void for_each_options(const Use& use) {
  TrainOptions how{.loss_chunk = 11};
  for (const float dropout : {0.0F, 0.1F}) {
    for (const bool keep : {false, true}) {
      for (const Recompute recompute : {Recompute::none, Recompute::cheap, Recompute::block}) {
        for (const int layers : {-1, 0, 2, 9}) {
          how.batch = layers == 0 ? 1 : 3;  // sizes that cache lines divide, and do not
          how.seq = layers == 0 ? 64 : 19;
          how.dropout = dropout;
          how.model.keep_dequantized = keep;
          how.recompute = recompute;
          how.recompute_layers = layers;
          use(how);
        }
      }
    }
  }
}

/// Checks that the arenas of `trainer` are full and as large as the plan, which is returned. `workers` as the backend
/// says.
template <Config C, class B>
MemoryPlan check_full(Trainer<C, B>& trainer, int workers) {
  const auto& network = trainer.core().network();
  const auto& weights = trainer.model().weights();
  const MemoryPlan plan = Network<code_of(C), B>::plan(weights, network.run(), workers);
  CHECK(trainer.core().arena_bytes_used() == plan.total());
  CHECK(network.arena().used() == network.arena().size());
  CHECK(weights.arena().used() == weights.arena().size());
  return plan;
}

}  // namespace arenas
