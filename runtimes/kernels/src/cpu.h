// Which of the compiled paths this CPU (and its operating system) can run.
#pragma once

#include "edgeqkv_attention.h"

namespace edgeqkv {

unsigned available_isas();  // bit EDGEQKV_ISA_...

}  // namespace edgeqkv
