// Files of other people's making, and one of ours.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace edgeqkv {

bool exists(const std::string& path);

// The real path of the regular file `name` of the bundle `folder`. Error where there is none, or where it lies elsewhere by way
// of a link.
std::string file_in_bundle(const std::string& folder, const std::string& name);

struct Bytes {
  std::unique_ptr<char[]> data;
  size_t size = 0;
};

// A whole regular file; Error where it is longer than `limit`, or is something else (a pipe, a device, a folder).
Bytes read_file(const std::string& path, uint64_t limit);

// The sha256 of a regular file, in hexadecimal digits. Remembered in the process while path, device, inode, size and both times
// stay what they were; a file that changed less than two seconds ago is not: times of a file system are that coarse.
std::string file_sha256(const std::string& path);

// Writes a file whole or not at all: `fill` gets a function that appends bytes. Readable by its owner alone.
void write_atomically(const std::string& path,
                      const std::function<void(const std::function<void(const void*, size_t)>&)>& fill);

}  // namespace edgeqkv
