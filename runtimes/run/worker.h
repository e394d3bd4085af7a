// The process that `edgeqkv bench` measures: one request a line on stdin, one answer a line on stdout, as
// edgeqkv/bench/worker.py describes them.
#pragma once

#include "opened.h"

namespace edgeqkv {

// Until stdin ends.
void serve(const Libraries& libraries);

}  // namespace edgeqkv
