// When a loss counts as better: it is a number, and larger than the best so far or that is none.
#pragma once

#include "math/bits.h"

namespace rf {

RF_HD bool is_better(double loss, double best) { return loss == loss && !(loss <= best); }

}  // namespace rf
