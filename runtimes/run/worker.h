// The process that `edgeqkv bench` measures: one request a line, one answer a line, as edgeqkv/bench/protocol.py describes
// them.
#pragma once

#include "opened.h"

namespace edgeqkv {

// Reads requests from one descriptor and writes answers to another one or, of a socket, the same, until the other side ends it.
// Closes neither of them, but what it opened itself.
void serve(int requests, int answers, const Libraries& libraries);

}  // namespace edgeqkv
