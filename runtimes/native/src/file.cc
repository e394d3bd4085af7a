#include "file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "error.h"
#include "sha256.h"

namespace edgeqkv {
namespace {

std::string reason() { return std::strerror(errno); }

class File {
 public:
  explicit File(int descriptor) : descriptor_(descriptor) {}
  ~File() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  operator int() const { return descriptor_; }

 private:
  int descriptor_;
};

// Not blocking: opening a pipe would wait for its other end.
int open_regular(const std::string& path, struct stat& status) {
  if (path.find('\0') != std::string::npos) throw Error("a file's name holds a zero byte");
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (descriptor < 0 && errno == ENOENT) throw Error(path + " does not exist");
  if (descriptor < 0) throw Error(path + " cannot be read: " + reason());
  if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor);
    throw Error(path + " is not a regular file");
  }
  return descriptor;
}

size_t read_some(int file, void* data, size_t bytes, const std::string& path) {
  for (;;) {
    const ssize_t n = ::read(file, data, bytes);
    if (n >= 0) return size_t(n);
    if (errno != EINTR) throw Error(path + " cannot be read: " + reason());
  }
}

std::string real_path(const std::string& path) {
  const std::unique_ptr<char, decltype(&std::free)> real(::realpath(path.c_str(), nullptr), std::free);
  if (!real && errno == ENOENT) throw Error(path + " does not exist");
  if (!real) throw Error(path + " cannot be opened: " + reason());
  return real.get();
}

using Stamp = std::tuple<dev_t, ino_t, off_t, int64_t, int64_t>;

int64_t nanoseconds(const timespec& time) { return int64_t(time.tv_sec) * 1000000000 + time.tv_nsec; }

#if defined(__APPLE__)
timespec modified(const struct stat& s) { return s.st_mtimespec; }
timespec changed(const struct stat& s) { return s.st_ctimespec; }
#else
timespec modified(const struct stat& s) { return s.st_mtim; }
timespec changed(const struct stat& s) { return s.st_ctim; }
#endif

Stamp stamp(const struct stat& s) { return {s.st_dev, s.st_ino, s.st_size, nanoseconds(modified(s)), nanoseconds(changed(s))}; }

bool settled(const struct stat& s) {
  timespec now = {};
  clock_gettime(CLOCK_REALTIME, &now);
  return nanoseconds(now) - std::max(nanoseconds(modified(s)), nanoseconds(changed(s))) > int64_t{2000000000};
}

struct Known {
  Stamp stamp;
  std::string digest;
};

}  // namespace

bool exists(const std::string& path) {
  struct stat status;
  return ::stat(path.c_str(), &status) == 0;
}

std::string file_in_bundle(const std::string& folder, const std::string& name) {
  const std::string root = real_path(folder), real = real_path(folder + "/" + name);
  const std::string inside = root == "/" ? root : root + "/";
  if (real.compare(0, inside.size(), inside) != 0)
    throw Error(folder + "/" + name + " is a link out of the bundle; copy or export the bundle again");
  struct stat status;
  if (::stat(real.c_str(), &status) != 0 || !S_ISREG(status.st_mode))
    throw Error(folder + "/" + name + " is not a regular file");
  return real;
}

Bytes read_file(const std::string& path, uint64_t limit) {
  struct stat status;
  const File file(open_regular(path, status));
  if (status.st_size < 0 || uint64_t(status.st_size) > limit)
    throw Error(path + " has " + std::to_string(status.st_size) + " bytes, and at most " + std::to_string(limit) +
                " can be right");
  Bytes bytes;
  bytes.size = size_t(status.st_size);
  bytes.data.reset(new char[bytes.size + 1]);  // not set to zero: it may be long
  size_t got = 0;
  // One byte more than it should have, to notice that it grew (or is one of those in /proc that say 0).
  while (got <= bytes.size) {
    const size_t n = read_some(file, bytes.data.get() + got, bytes.size + 1 - got, path);
    if (!n) break;
    got += n;
  }
  if (got != bytes.size) throw Error(path + " changed while it was read");
  return bytes;
}

std::string file_sha256(const std::string& path) {
  static std::mutex mutex;
  static auto& known = *new std::map<std::string, Known>;  // never destroyed: threads may still ask when the process ends
  constexpr size_t kMost = 4096;

  struct stat status;
  const File file(open_regular(path, status));
  {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = known.find(path);
    if (found != known.end() && found->second.stamp == stamp(status)) return found->second.digest;
  }
  Sha256 sha256;
  std::vector<char> piece(size_t{1} << 16);
  while (const size_t n = read_some(file, piece.data(), piece.size(), path)) sha256.update(piece.data(), n);
  const std::string digest = hex(sha256.finish());
  struct stat after;
  if (::fstat(file, &after) != 0 || stamp(after) != stamp(status)) throw Error(path + " changed while it was read");
  if (settled(status)) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (known.size() >= kMost) known.clear();
    known[path] = {stamp(status), digest};
  }
  return digest;
}

void write_atomically(const std::string& path,
                      const std::function<void(const std::function<void(const void*, size_t)>&)>& fill) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  std::string temporary = folder + "/.edgeqkv-XXXXXX";
  auto fail = [&] { throw Error(path + " cannot be written: " + reason()); };
  struct stat status;
  if (::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) throw Error(path + " is there and is not a regular file");
  const File file(::mkostemp(&temporary[0], O_CLOEXEC));  // mode 0600
  if (file < 0) fail();
  try {
    fill([&](const void* data, size_t bytes) {
      for (auto* from = static_cast<const char*>(data); bytes;) {
        const ssize_t n = ::write(file, from, std::min(bytes, size_t{1} << 30));
        if (n < 0 && errno != EINTR) fail();
        if (n > 0) from += n, bytes -= size_t(n);
      }
    });
    if (::fsync(file) != 0) fail();
    if (::rename(temporary.c_str(), path.c_str()) != 0) fail();
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
  // So that the new name survives a power cut too; where a folder cannot be flushed, the file is still whole.
  const File parent(::open(folder.c_str(), O_RDONLY | O_CLOEXEC));
  if (parent >= 0) ::fsync(parent);
}

}  // namespace edgeqkv
