// The projection of one sample, shared by l1_project_ and l1_step_.
#pragma once

#include <cstdint>

#include "math/l1_project.h"

namespace rf {

// Projects a sample in place, x_adv and x of the storage type.
template <class Blocks>
void l1_project_sample(typename Blocks::Word* x_adv, const typename Blocks::Word* x, int64_t n,
                       const L1Scalars& scalars);

}  // namespace rf
