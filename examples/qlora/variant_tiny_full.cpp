// variant_tiny_full.cpp — every weight of the small models of examples/models.
#include "qlora/configs/tiny.hpp"
#include "variant_impl.hpp"

static const qlora::program::Registered<qlora::tiny_chat.with(qlora::Trainable::all)> registered;
