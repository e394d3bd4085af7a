// A runtime's shared library, which stays loaded until the process ends.
#pragma once

#include <dlfcn.h>

#include <initializer_list>
#include <string>

#include "error.h"

namespace edgeqkv {

class Library {
 public:
  // The file `given`; where that is empty, the first of the `usual` names that the dynamic linker finds. `what` opens the
  // sentence when nothing loads.
  Library(const std::string& given, std::initializer_list<const char*> usual, const std::string& what) : what_(what) {
    std::string why;
    auto load = [&](const char* name) {
      handle_ = dlopen(name, RTLD_NOW | RTLD_LOCAL);
      if (!handle_ && why.empty()) why = dlerror();
      return handle_ != nullptr;
    };
    if (!given.empty() ? load(given.c_str()) : [&] {
          for (const char* name : usual)
            if (load(name)) return true;
          return false;
        }())
      return;
    throw Error(what + " cannot be loaded (" + why + "); install it where the dynamic linker looks, or give the path of " +
                    *usual.begin(),
                kMissing);
  }

  template <class Function>
  Function* function(const char* name) const {
    void* found = dlsym(handle_, name);
    if (!found) throw Error("what was loaded as " + what_ + " has no " + name + "; give the path of another file", kMissing);
    return reinterpret_cast<Function*>(found);
  }

 private:
  std::string what_;
  void* handle_ = nullptr;
};

}  // namespace edgeqkv
