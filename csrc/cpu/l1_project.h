// The projection of one sample, shared by l1_project_ and l1_step_.
#pragma once

#include <cstdint>

#include "math/l1_project.h"

namespace rf {

// Projects a sample in place, x_adv and x of the storage type.
template <class Storage>
void l1_project_sample(typename Storage::Word* x_adv, const typename Storage::Word* x, int64_t n,
                       const L1Scalars& scalars);

}  // namespace rf
