// Four query heads cannot share three key/value heads.
// expect: satisfaction of .KvHeadsDivideHeads<
#include "case.hpp"

constexpr qlora::Config config = [] {
  qlora::Config c = sound;
  c.shape.kv_heads = right ? 2 : 3;
  return c;
}();
User<config> user;
