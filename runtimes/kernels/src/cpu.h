// Which of the compiled paths this CPU (and its operating system) can run.
#pragma once

#include "edgeqkv_attention.h"

namespace edgeqkv {

bool cpu_has(int isa);
int best_isa();

}  // namespace edgeqkv
