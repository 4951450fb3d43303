// qlora/serve/models.hpp — the models of a server: each base with its adapters, found by the names that requests give.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/json.hpp"
#include "qlora/serve/model.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {

/// At least one. Any thread may use it.
class ServedModels {
 public:
  /// The first answers requests without a name. All outlive this, and no two have a name in common.
  explicit ServedModels(std::vector<const ServedModel*> models) : models_(std::move(models)) {
    QLORA_EXPECTS(!models_.empty(), "no model to serve");
  }

  [[nodiscard]] const ServedModel& first() const { return *models_.front(); }           ///< the one without a name
  [[nodiscard]] const std::vector<const ServedModel*>& all() const { return models_; }  ///< in the order given
  /// The model with a base or adapter of this name, "adapter@0.6" included; if none, the first, which refuses the name.
  [[nodiscard]] const ServedModel& of(std::string_view name) const {
    for (const ServedModel* model : models_) {
      if (model->names().find(name)) return *model;
    }
    return first();
  }
  /// The model that a body of OpenAI's names in `model`, or one of TGI's in `adapter_id` of its `parameters`.
  [[nodiscard]] const ServedModel& of_body(const Json& body) const {
    const Json* name = json_find(body, "model");
    if (const Json* parameters = json_find(body, "parameters"); parameters != nullptr && parameters->is_object()) {
      if (const Json* adapter = json_find(*parameters, "adapter_id"); adapter != nullptr) name = adapter;
    }
    return name != nullptr && name->is_string() ? of(name->get_ref<const std::string&>()) : first();
  }
  /// Names of all bases and adapters, each base before its adapters.
  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (const ServedModel* model : models_) {
      out.push_back(model->names().base());
      for (std::string& name : model->names().adapters()) out.push_back(std::move(name));
    }
    return out;
  }
  /// Values that the JSON of a body has at most.
  [[nodiscard]] std::size_t most_values() const {
    std::size_t most = 0;
    for (const ServedModel* model : models_) most = std::max(most, model->most_values());
    return most;
  }
  /// Why a model can no longer run; empty while all can.
  [[nodiscard]] std::string failure() const {
    for (const ServedModel* model : models_) {
      if (std::string why = model->service().failure(); !why.empty()) return why;
    }
    return {};
  }

 private:
  std::vector<const ServedModel*> models_;
};

}  // namespace serve
}  // namespace v0
}  // namespace qlora
