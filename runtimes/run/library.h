// A shared library that stays loaded until the process ends.
#pragma once

#include <dlfcn.h>

#include <string>
#include <vector>

#include "error.h"

namespace edgeqkv {

class Library {
 public:
  // The first of `names` that the dynamic linker finds; `what` opens the sentence when it finds none.
  Library(const std::vector<std::string>& names, const std::string& what) {
    std::string why;
    for (const std::string& name : names) {
      if ((handle_ = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL))) return;
      if (why.empty()) why = dlerror();
    }
    throw Error(what + " cannot be loaded (" + why + "); name the file with --library", kMissing);
  }

  void* symbol(const char* name) const {
    void* found = dlsym(handle_, name);
    if (!found) throw Error(std::string("the library has no ") + name + "; name another file with --library", kMissing);
    return found;
  }

 private:
  void* handle_ = nullptr;
};

}  // namespace edgeqkv
