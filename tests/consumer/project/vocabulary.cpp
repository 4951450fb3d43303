// A program that needs the configs and nothing else: no Eigen, no JSON.
#include <qlora/configs/llama2.hpp>

static_assert(qlora::parameters(qlora::llama2_7b.shape) == 6'738'415'616);
static_assert(__cplusplus >= 202002L, "the target asks for C++20 by itself");

int main() { return qlora::llama2_7b_chat.form == qlora::Form::chat ? 0 : 1; }
