/* GCC 11's C++ headers and newer ask glibc 2.32 here whether the process has one thread. An older glibc does not know, and "no"
 * is always right: it costs an atomic addition. */
#pragma once
static const char __libc_single_threaded = 0;
