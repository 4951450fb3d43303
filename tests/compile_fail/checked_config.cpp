// checked() says in words what is wrong, in one line of the message.
// expect: throw "the number of key heads divides the number of query heads"
#include "case.hpp"

constexpr qlora::Config config = qlora::checked([] {
  qlora::Config c = sound;
  c.shape.kv_heads = right ? 2 : 3;
  return c;
}());
User<config> user;
