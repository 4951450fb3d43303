// variant_full.cpp — training of every weight, on the CPU: any shape.
#include "variant_impl.hpp"

static constexpr qlora::Config any{.shape = qlora::dynamic_shape};
static const qlora::program::Registered<any.with(qlora::Trainable::all)> registered;
