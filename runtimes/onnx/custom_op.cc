// edgeqkv::CachedAttention for ONNX Runtime: the attention kernel as a custom operator, on the runtime's own thread pool.
//
//   inputs   q [T, n_head * head_dim], k and v [T, n_kv_head * head_dim] float32 (no v: the value is the key),
//            position int64 [1], then the cache as the kernel's header lays it out, with a leading 1 as batch:
//            k_cache, k_scale, v_cache, v_scale (scales only with int8, v_* only with v; what is absent is an empty name)
//   outputs  out like q, and k_cache, k_scale, v_cache, v_scale after the step
//   int      n_head, n_kv_head
//
// A cache output that is bound to its input's memory is updated in place; otherwise the whole cache is copied first.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <iterator>
#include <mutex>
#include <new>
#include <thread>

#include "edgeqkv_attention.h"
#include "ort_api.h"

namespace edgeqkv::ort {
namespace {

enum Input { kQ, kK, kV, kPosition, kCaches, kInputs = kCaches + 4 };  // kCaches: k_cache, k_scale, v_cache, v_scale
enum Output { kOut, kCachesOut, kOutputs = kCachesOut + 4 };

// A host that limits the session's threads says so here; otherwise the operator assumes one for each core.
constexpr const char* kThreadsEntry = "edgeqkv.threads";
constexpr int32_t kMaxThreads = 1024;

// The operator for one cache dtype and number of threads.
struct Op : CustomOp {
  int32_t dtype;
  int element;  // ONNX's name for the dtype
  int32_t n_thread;
};

struct Kernel {
  Api api;
  int32_t dtype, n_thread;
  int64_t n_head, n_kv_head;
};

struct Tensor {
  OrtValue* value = nullptr;
  char* data = nullptr;
  int64_t dims[8] = {};
  size_t n_dim = 0;

  size_t elements() const {
    size_t n = 1;
    for (size_t i = 0; i < n_dim; i++) n *= size_t(dims[i]);
    return n;
  }
};

#define RETURN_IF_ERROR(call)                  \
  do {                                         \
    if (OrtStatus* status = (call)) return status; \
  } while (0)

OrtStatus* read_input(const Api& api, const OrtKernelContext* context, size_t index, Tensor& tensor) {
  const OrtValue* value = nullptr;
  RETURN_IF_ERROR(api.KernelContext_GetInput()(context, index, &value));
  if (!value) return nullptr;  // an optional input that is not there
  tensor.value = const_cast<OrtValue*>(value);
  RETURN_IF_ERROR(api.GetTensorMutableData()(tensor.value, reinterpret_cast<void**>(&tensor.data)));
  OrtTensorTypeAndShapeInfo* info = nullptr;
  RETURN_IF_ERROR(api.GetTensorTypeAndShape()(value, &info));
  OrtStatus* status = api.GetDimensionsCount()(info, &tensor.n_dim);
  if (!status && tensor.n_dim > std::size(tensor.dims))
    status = api.CreateStatus()(kInvalidArgument, "CachedAttention: a tensor has too many dimensions");
  if (!status) status = api.GetDimensions()(info, tensor.dims, tensor.n_dim);
  api.ReleaseTensorTypeAndShapeInfo()(info);
  return status;
}

// The place of output `index`, shaped like `like`.
OrtStatus* make_output(const Api& api, OrtKernelContext* context, size_t index, const Tensor& like, char** data) {
  OrtValue* value = nullptr;
  RETURN_IF_ERROR(api.KernelContext_GetOutput()(context, index, like.dims, like.n_dim, &value));
  if (!value) return api.CreateStatus()(kInvalidArgument, "CachedAttention: an output of the cache is missing");
  return api.GetTensorMutableData()(value, reinterpret_cast<void**>(data));
}

// A step of the kernel, as ONNX Runtime's pool runs it.
struct Loop {
  void (*task)(void*, int32_t);
  void* arg;
};

struct Pool {
  const Api* api;
  const OrtKernelContext* context;
  OrtStatus* status;
};

void run_on_pool(void* context, int32_t n, void (*task)(void*, int32_t), void* arg) {
  Pool& pool = *static_cast<Pool*>(context);
  Loop loop = {task, arg};
  auto one = [](void* user, size_t i) {
    auto* l = static_cast<Loop*>(user);
    l->task(l->arg, int32_t(i));
  };
  // As many batches as items: an idle thread takes the next item, whichever that is.
  OrtStatus* status = pool.api->KernelContext_ParallelFor()(pool.context, one, size_t(n), size_t(n), &loop);
  if (status && !pool.status)
    pool.status = status;
  else if (status)
    pool.api->ReleaseStatus()(status);
}

bool has_shape(const Tensor& tensor, std::initializer_list<int64_t> shape) {
  return tensor.n_dim == shape.size() && std::equal(shape.begin(), shape.end(), tensor.dims);
}

OrtStatus* compute(void* op_kernel, OrtKernelContext* context) {
  const Kernel& kernel = *static_cast<Kernel*>(op_kernel);
  const Api& api = kernel.api;
  auto refuse = [&](const char* why) { return api.CreateStatus()(kInvalidArgument, why); };

  Tensor in[kInputs];
  for (size_t i = 0; i < kInputs; i++) RETURN_IF_ERROR(read_input(api, context, i, in[i]));
  Tensor* caches = in + kCaches;
  const Tensor &q = in[kQ], &k = in[kK], &v = in[kV], &k_cache = caches[0];

  const bool scaled = kernel.dtype == EDGEQKV_INT8, with_v = v.value != nullptr;
  if (q.n_dim != 2 || k_cache.n_dim != 4 || q.dims[1] < 1 || q.dims[1] % kernel.n_head)
    return refuse("CachedAttention: q or k_cache has a wrong shape");
  if (in[kPosition].elements() != 1) return refuse("CachedAttention: position has a wrong shape");
  const int64_t n_token = q.dims[0], head_dim = q.dims[1] / kernel.n_head, n_kv = kernel.n_kv_head, capacity = k_cache.dims[2];
  if (n_token > INT32_MAX || head_dim > INT32_MAX || capacity > INT32_MAX)
    return refuse("CachedAttention: the kernel does not take these shapes");
  for (const Tensor* x : {&k, &v})
    if (x->value && !has_shape(*x, {n_token, n_kv * head_dim})) return refuse("CachedAttention: k or v has a wrong shape");
  for (int i = 0; i < 4; i++) {
    const bool scale = i % 2, wanted = (!scale || scaled) && (i < 2 || with_v);
    if (wanted != (caches[i].value != nullptr)) return refuse("CachedAttention: the caches do not fit the dtype and v");
    if (!wanted) continue;
    const bool fits = scale ? has_shape(caches[i], {1, n_kv, capacity}) : has_shape(caches[i], {1, n_kv, capacity, head_dim});
    if (!fits) return refuse("CachedAttention: a cache has a wrong shape");
  }
  const int64_t position = *reinterpret_cast<const int64_t*>(in[kPosition].data);
  if (position < 0 || position > capacity - n_token) return refuse("CachedAttention: the tokens do not fit the cache");

  char* out = nullptr;
  RETURN_IF_ERROR(make_output(api, context, kOut, q, &out));
  for (size_t i = 0; i < 4; i++) {
    if (!caches[i].value) continue;
    char* after = nullptr;
    RETURN_IF_ERROR(make_output(api, context, kCachesOut + i, caches[i], &after));
    const size_t bytes = i % 2 || kernel.dtype == EDGEQKV_FP32 ? 4 : kernel.dtype == EDGEQKV_FP16 ? 2 : 1;
    if (after != caches[i].data) std::memcpy(after, caches[i].data, caches[i].elements() * bytes);
    caches[i].data = after;
  }
  if (n_token == 0) return nullptr;

  edgeqkv_attention_args args = {};
  args.n_head = int32_t(kernel.n_head);
  args.n_kv_head = int32_t(n_kv);
  args.head_dim = int32_t(head_dim);
  args.capacity = int32_t(capacity);
  args.position = int32_t(position);
  args.n_token = int32_t(n_token);
  args.dtype = kernel.dtype;
  args.q = reinterpret_cast<const float*>(q.data);
  args.k = reinterpret_cast<const float*>(k.data);
  args.v = reinterpret_cast<const float*>(v.data);
  args.k_cache = caches[0].data;
  args.k_scale = reinterpret_cast<float*>(caches[1].data);
  args.v_cache = caches[2].data;
  args.v_scale = reinterpret_cast<float*>(caches[3].data);
  args.out = reinterpret_cast<float*>(out);
  Pool pool = {&api, context, nullptr};
  const int32_t error = edgeqkv_attention(&args, run_on_pool, &pool, kernel.n_thread);
  if (pool.status) return pool.status;
  if (error == EDGEQKV_NO_MEMORY) return api.CreateStatus()(kFail, "CachedAttention: out of memory");
  return error ? refuse("CachedAttention: the kernel does not take these shapes") : nullptr;
}

OrtStatus* create(const CustomOp* base, const OrtApi* table, const OrtKernelInfo* info, void** kernel) {
  const Op& op = *static_cast<const Op*>(base);
  Kernel made = {Api(table), op.dtype, op.n_thread, 0, 0};
  RETURN_IF_ERROR(made.api.KernelInfoGetAttribute_int64()(info, "n_head", &made.n_head));
  RETURN_IF_ERROR(made.api.KernelInfoGetAttribute_int64()(info, "n_kv_head", &made.n_kv_head));
  if (made.n_kv_head < 1 || made.n_head < 1 || made.n_head > INT32_MAX || made.n_head % made.n_kv_head)
    return made.api.CreateStatus()(kInvalidArgument, "CachedAttention: n_head is not a multiple of n_kv_head");
  *kernel = new (std::nothrow) Kernel(made);
  return *kernel ? nullptr : made.api.CreateStatus()(kFail, "CachedAttention: out of memory");
}

int cache_type(const CustomOp* op, size_t cache) { return cache % 2 ? kFloat : static_cast<const Op*>(op)->element; }

Op make_op(int32_t dtype, int element, int32_t n_thread) {
  Op op = {};
  op.version = kApiVersion;
  op.GetName = [](const CustomOp*) { return "CachedAttention"; };
  op.GetExecutionProviderType = [](const CustomOp*) -> const char* { return nullptr; };
  op.GetInputTypeCount = [](const CustomOp*) -> size_t { return kInputs; };
  op.GetInputType = [](const CustomOp* self, size_t i) {
    return i < kPosition ? kFloat : i == kPosition ? kInt64 : cache_type(self, i - kCaches);
  };
  op.GetOutputTypeCount = [](const CustomOp*) -> size_t { return kOutputs; };
  op.GetOutputType = [](const CustomOp* self, size_t i) { return i == kOut ? kFloat : cache_type(self, i - kCachesOut); };
  op.GetInputCharacteristic = [](const CustomOp*, size_t i) { return i == kV || i > kCaches ? kOptional : kRequired; };
  op.GetOutputCharacteristic = [](const CustomOp*, size_t i) { return i > kCachesOut ? kOptional : kRequired; };
  op.GetInputMemoryType = [](const CustomOp*, size_t) { return 0; };
  op.GetVariadicInputMinArity = [](const CustomOp*) { return 0; };
  op.GetVariadicInputHomogeneity = [](const CustomOp*) { return 0; };
  op.GetVariadicOutputMinArity = [](const CustomOp*) { return 0; };
  op.GetVariadicOutputHomogeneity = [](const CustomOp*) { return 0; };
  op.GetStartVersion = [](const CustomOp*) { return 1; };
  op.GetEndVersion = [](const CustomOp*) { return INT32_MAX; };
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = compute;
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.dtype = dtype;
  op.element = element;
  op.n_thread = n_thread;
  return op;
}

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

// The domain for so many threads, made at its first use and kept as long as the process: ONNX Runtime never says when it is
// done with one, and any number of sessions may share it.
OrtStatus* domain_for(const Api& api, int32_t n_thread, OrtCustomOpDomain** domain) {
  struct Domain {
    OrtCustomOpDomain* domain = nullptr;
    Op ops[3];
  };
  static Domain* domains[kMaxThreads + 1] = {};
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  if (!domains[n_thread]) {
    auto* made = new (std::nothrow) Domain;
    if (!made) return api.CreateStatus()(kFail, "CachedAttention: out of memory");
    OrtStatus* status = api.CreateCustomOpDomain()("edgeqkv", &made->domain);
    const int elements[] = {kFloat, kFloat16, kInt8};  // in the order of the kernel's dtypes
    for (int32_t dtype = EDGEQKV_FP32; !status && dtype <= EDGEQKV_INT8; dtype++) {
      made->ops[dtype] = make_op(dtype, elements[dtype], n_thread);
      status = api.CustomOpDomain_Add()(made->domain, &made->ops[dtype]);
    }
    if (status) {
      if (made->domain) api.ReleaseCustomOpDomain()(made->domain);
      delete made;
      return status;
    }
    domains[n_thread] = made;
  }
  *domain = domains[n_thread]->domain;
  return nullptr;
}

OrtStatus* register_ops(const Api& api, OrtSessionOptions* options) {
  int32_t n_thread = 1;
  OrtCustomOpDomain* domain = nullptr;
  RETURN_IF_ERROR(thread_count(api, options, &n_thread));
  RETURN_IF_ERROR(domain_for(api, n_thread, &domain));
  return api.AddCustomOpDomain()(options, domain);
}

}  // namespace
}  // namespace edgeqkv::ort

// The name that ONNX Runtime looks for in a library of custom operators.
extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const edgeqkv::ort::ApiBase* base) {
  const OrtApi* table = base->GetApi(edgeqkv::ort::kApiVersion);
  if (!table) return nullptr;  // too old a runtime; it then says that it does not know CachedAttention
  return edgeqkv::ort::register_ops(edgeqkv::ort::Api(table), options);
}
