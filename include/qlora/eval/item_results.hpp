// qlora/eval/item_results.hpp — results of a measurement, probe by probe: the input of metrics, shares and examples.
#pragma once

#include <vector>

#include "qlora/eval/probes.hpp"

namespace qlora {
inline namespace v0 {
namespace eval {

/// Results of one model, item by item. What does not apply to an item is NaN or empty.
struct ItemResults {
  std::vector<Reply> replies;     ///< empty for texts
  std::vector<Verdict> verdicts;  ///< of the replies
  std::vector<double> margin;     ///< nats
  std::vector<double> loss;       ///< nats, the sum over `tokens`
  std::vector<double> kl;         ///< nats, likewise; NaN without a reference
  std::vector<double> tokens;     ///< that a text predicts
};

}  // namespace eval
}  // namespace v0
}  // namespace qlora
