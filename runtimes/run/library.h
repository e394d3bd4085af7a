// A shared library that stays loaded until the process ends.
#pragma once

#include <dlfcn.h>

#include <string>
#include <vector>

#include "error.h"

namespace edgeqkv {

class Library {
 public:
  // The one of `given` whose file name begins with `stem`; without any, the first of the `usual` names that the dynamic linker
  // finds. `what` opens the sentence when nothing loads.
  Library(const std::vector<std::string>& given, const std::string& stem, const std::vector<std::string>& usual,
          const std::string& what) {
    std::vector<std::string> names;
    for (const std::string& file : given)
      if (file.compare(file.rfind('/') + 1, stem.size(), stem) == 0) names.push_back(file);
    std::string why;
    for (const std::string& name : names.empty() ? usual : names) {
      if ((handle_ = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL))) return;
      if (why.empty()) why = dlerror();
    }
    throw Error(what + " cannot be loaded (" + why + "); name the file " + stem + "* with --library", kMissing);
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
