// edgeqkv's operators for ONNX Runtime, registered as a library of custom operators: cached_attention.cc and
// latent_attention.cc.
#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>

#include "op.h"

namespace edgeqkv::ort {
namespace {

// A host that limits the session's threads says so here; otherwise the operators assume one for each core.
constexpr const char* kThreadsEntry = "edgeqkv.threads";
constexpr int32_t kMaxThreads = 1024;

// What the host has set in the session's options, or the number of cores.
OrtStatus* thread_count(const Api& api, const OrtSessionOptions* options, int32_t* count) {
  int set = 0;
  RETURN_IF_ERROR(api.HasSessionConfigEntry()(options, kThreadsEntry, &set));
  if (!set) {
    const unsigned cores = std::thread::hardware_concurrency();  // 0 where it is not known
    *count = int32_t(std::clamp(cores, 1u, unsigned(kMaxThreads)));
    return nullptr;
  }
  char text[16] = {}, *end = nullptr;
  size_t size = 0;
  RETURN_IF_ERROR(api.GetSessionConfigEntry()(options, kThreadsEntry, nullptr, &size));
  if (size <= sizeof text) RETURN_IF_ERROR(api.GetSessionConfigEntry()(options, kThreadsEntry, text, &size));
  const long value = std::strtol(text, &end, 10);
  if (!*text || *end || value < 1 || value > kMaxThreads)
    return api.CreateStatus()(kInvalidArgument, "edgeqkv.threads is a number of threads, 1 to 1024");
  *count = int32_t(value);
  return nullptr;
}

// The operators of one ONNX Runtime for one number of threads. Made at their first use and kept as long as the process: a
// runtime never says when it is done with a domain, and any number of its sessions may share one. (CMakeLists.txt keeps this
// library loaded, so that they are not made again after a dlclose.)
struct Domain {
  const OrtApi* runtime;  // a process may hold several, each with its own table
  int32_t n_thread;
  OrtCustomOpDomain* domain;
  Op ops[6];
  Domain* next;
};

OrtStatus* make_domain(const Api& api, Domain& made) {
  for (int32_t dtype = EDGEQKV_FP32; dtype <= EDGEQKV_INT8; dtype++) {
    made.ops[dtype] = cached_attention(dtype, made.n_thread);
    made.ops[3 + dtype] = latent_attention(dtype, made.n_thread);
  }
  RETURN_IF_ERROR(api.CreateCustomOpDomain()("edgeqkv", &made.domain));
  for (const Op& op : made.ops) RETURN_IF_ERROR(api.CustomOpDomain_Add()(made.domain, &op));
  return nullptr;
}

OrtStatus* domain_for(const OrtApi* runtime, int32_t n_thread, OrtCustomOpDomain** domain) {
  static Domain* domains = nullptr;
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const Domain* d = domains; d; d = d->next)
    if (d->runtime == runtime && d->n_thread == n_thread) {
      *domain = d->domain;
      return nullptr;
    }
  const Api api(runtime);
  auto* made = new (std::nothrow) Domain{runtime, n_thread, nullptr, {}, domains};
  if (!made) return api.CreateStatus()(kFail, "edgeqkv: out of memory");
  if (OrtStatus* status = make_domain(api, *made)) {
    if (made->domain) api.ReleaseCustomOpDomain()(made->domain);
    delete made;
    return status;
  }
  domains = made;
  *domain = made->domain;
  return nullptr;
}

OrtStatus* register_ops(const OrtApi* runtime, OrtSessionOptions* options) {
  const Api api(runtime);
  int32_t n_thread = 1;
  OrtCustomOpDomain* domain = nullptr;
  RETURN_IF_ERROR(thread_count(api, options, &n_thread));
  RETURN_IF_ERROR(domain_for(runtime, n_thread, &domain));
  return api.AddCustomOpDomain()(options, domain);
}

}  // namespace
}  // namespace edgeqkv::ort

// The name that ONNX Runtime looks for in a library of custom operators.
extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const edgeqkv::ort::ApiBase* base) {
  const OrtApi* runtime = base->GetApi(edgeqkv::ort::kApiVersion);
  if (!runtime) return nullptr;  // too old a runtime; it then says that it does not know CachedAttention
  return edgeqkv::ort::register_ops(runtime, options);
}
