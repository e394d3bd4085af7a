// edgeqkv::cached_attention.out and edgeqkv::head_linear.out for ExecuTorch: the kernels as operators, on the runtime's own
// pool of threads. Shapes are those of kernels/include/edgeqkv_operators.h, with a batch of 1 before T.
//
//   cached_attention.out(Tensor q, Tensor k, Tensor? v, Tensor position, Tensor? count, Tensor(a!) k_cache,
//     Tensor(b!)? k_scale, Tensor(c!)? v_cache, Tensor(d!)? v_scale, int n_head, int key_dim, int value_start, int value_dim,
//     int scale_split, float softmax_scale, *, Tensor(e!) out) -> Tensor(e!)
//   head_linear.out(Tensor x, Tensor weight, Tensor scale, *, Tensor(a!) out) -> Tensor(a!)
//
// position int64 [1], count int64 [1]: how many of the T tokens there are (None: all). Without v the value is a slice of k's
// rows; scales only with an int8 cache, v_* only with v; the caches are updated in place. `out` is zero from token `count` on.
// As every .out operator's, the arguments end with `out` once more, which it returns.
//
// Their twins for ONNX Runtime are in runtimes/onnx; export/executorch declares them to the exporter.
#include <executorch/runtime/kernel/kernel_runtime_context.h>
#include <executorch/runtime/kernel/operator_registry.h>
#include <executorch/runtime/platform/log.h>

#include <cstring>
#include <initializer_list>

#include "edgeqkv_operators.h"
#include "stop.h"
#include "threadpool.h"

namespace edgeqkv::executorch {
namespace {

using ::executorch::aten::ScalarType;
using ::executorch::aten::Tensor;
using ::executorch::runtime::Error;
using ::executorch::runtime::EValue;
using ::executorch::runtime::Kernel;
using ::executorch::runtime::KernelRuntimeContext;
using ::executorch::runtime::Span;

// The pool as the kernels' parallel_for; null where one thread is all there is.
struct Pool {
  ::executorch::extension::threadpool::ThreadPool* pool = ::executorch::extension::threadpool::get_threadpool();
  int32_t n_thread = pool ? int32_t(pool->get_thread_count()) : 1;

  edgeqkv_parallel_for parallel_for() const {
    if (n_thread <= 1) return nullptr;
    return [](void* context, int32_t n, void (*task)(void*, int32_t), void* arg) {
      auto one = [&](size_t i) { task(arg, int32_t(i)); };
      static_cast<::executorch::extension::threadpool::ThreadPool*>(context)->run(one, size_t(n));
    };
  }
};

// The dimensions of a tensor, or of none; from `first` on.
class Dims {
 public:
  explicit Dims(const Tensor* tensor, int first = 0) : n_(tensor ? size_t(tensor->dim()) : 0), first_(size_t(first)) {
    for (size_t i = 0; i < n_ && i < kMax; i++) dims_[i] = tensor->size(ssize_t(i));
  }
  // A shape of 0 dimensions, which no check passes, for one with a batch that is not 1 or with too many dimensions.
  Shape shape() const {
    if (n_ == 0) return {};
    bool usable = n_ <= kMax && n_ > first_ && (first_ == 0 || dims_[0] == 1);
    return {dims_ + first_, usable ? n_ - first_ : 0};
  }

 private:
  static constexpr size_t kMax = 8;
  size_t n_, first_;
  int64_t dims_[kMax] = {};
};

bool is(const Tensor* tensor, ScalarType type) { return !tensor || tensor->scalar_type() == type; }

template <class T>
T* data(const Tensor* tensor) {
  return tensor ? static_cast<T*>(tensor->mutable_data_ptr()) : nullptr;
}

bool refuse(const char* op, const char* why) {
  ET_LOG(Error, "%s: %s", op, why);
  return false;
}

// The tensors among an operator's arguments, null for None; false where something else stands.
bool read_tensors(Span<EValue*> arguments, size_t n, const Tensor** tensors) {
  for (size_t i = 0; i < n; i++) {
    tensors[i] = arguments[i]->isTensor() ? &arguments[i]->toTensor() : nullptr;
    if (!tensors[i] && !arguments[i]->isNone()) return false;
  }
  return true;
}

enum Argument { kQ, kK, kV, kPosition, kCount, kCaches, kTensors = kCaches + 4 };  // kCaches: four of them
enum { kIntegers = kTensors, kScale = kIntegers + 5, kOut };

// False when the tensors are not what the comment above says, or do not fit the cache.
bool attend(const Tensor* const t[kTensors], CachedAttentionAttributes node, const Tensor& out, Error& error) {
  constexpr const char* kName = "edgeqkv::cached_attention";
  error = Error::InvalidArgument;
  if (!t[kQ] || !t[kK] || !t[kPosition] || !t[kCaches]) return refuse(kName, "a tensor is missing");
  const ScalarType type = t[kCaches]->scalar_type();
  if (type != ScalarType::Char && type != ScalarType::Half && type != ScalarType::Float)
    return refuse(kName, "a cache has a wrong dtype");
  for (int i : {int(kQ), int(kK), int(kV), kCaches + 1, kCaches + 3})
    if (!is(t[i], ScalarType::Float)) return refuse(kName, "a tensor has a wrong dtype");
  if (!is(t[kCaches + 2], type) || !is(&out, ScalarType::Float)) return refuse(kName, "a tensor has a wrong dtype");
  for (const Tensor* x : {t[kPosition], t[kCount]})
    if (!is(x, ScalarType::Long) || (x && x->numel() != 1)) return refuse(kName, "position or count has a wrong shape");

  const Dims q(t[kQ], 1), k(t[kK], 1), v(t[kV], 1), out_dims(&out, 1);
  const Dims caches[] = {Dims(t[kCaches]), Dims(t[kCaches + 1]), Dims(t[kCaches + 2]), Dims(t[kCaches + 3])};
  const CachedAttentionShapes shapes = {
      q.shape(), k.shape(), v.shape(), {caches[0].shape(), caches[1].shape(), caches[2].shape(), caches[3].shape()}};
  node.n_kv_head = shapes.caches[0].n_dim == 4 ? shapes.caches[0].dims[1] : 0;
  edgeqkv_attention_args args = {};
  const int32_t dtype = type == ScalarType::Char ? EDGEQKV_INT8 : type == ScalarType::Half ? EDGEQKV_FP16 : EDGEQKV_FP32;
  if (const char* why = set_shape(node, shapes, dtype, args)) return refuse(kName, why);
  const int64_t n_token = args.n_token, width = int64_t(args.n_head) * args.value_dim;
  if (!out_dims.shape().is({n_token, width})) return refuse(kName, "out has a wrong shape");
  const int64_t position = *data<const int64_t>(t[kPosition]), count = t[kCount] ? *data<const int64_t>(t[kCount]) : n_token;
  if (count < 1 || count > n_token || position < 0 || position > args.capacity - count) {
    ET_LOG(Error, "%lld tokens at position %lld do not fit a cache of %d", (long long)count, (long long)position,
           args.capacity);
    return false;
  }
  args.position = int32_t(position);
  args.n_token = int32_t(count);
  args.q = data<const float>(t[kQ]);
  args.k = data<const float>(t[kK]);
  args.v = data<const float>(t[kV]);
  args.k_cache = data<void>(t[kCaches]);
  args.k_scale = data<float>(t[kCaches + 1]);
  args.v_cache = data<void>(t[kCaches + 2]);
  args.v_scale = data<float>(t[kCaches + 3]);
  args.out = data<float>(&out);
  const Pool pool;
  const int32_t status = edgeqkv_attention(&args, pool.parallel_for(), pool.pool, pool.n_thread);
  std::memset(args.out + count * width, 0, size_t((n_token - count) * width) * sizeof(float));
  if (status == EDGEQKV_NO_MEMORY) error = Error::MemoryAllocationFailed;
  return status == EDGEQKV_OK || refuse(kName, "the kernel does not take these shapes");
}

void cached_attention_out(KernelRuntimeContext& context, Span<EValue*> arguments) {
  if (stopped && *stopped) return context.fail(Error::InvalidState);
  if (arguments.size() <= kOut) {  // the operator of 0.1 has the same name, and no attributes
    refuse("edgeqkv::cached_attention", "the program was exported by an edgeqkv before 0.2; export it again");
    return context.fail(Error::InvalidProgram);
  }
  const Tensor* tensors[kTensors] = {};
  if (!read_tensors(arguments, kTensors, tensors)) return context.fail(Error::InvalidArgument);
  int64_t integers[kScale - kIntegers] = {};
  for (int i = 0; i < kScale - kIntegers; i++) {
    const EValue& value = *arguments[size_t(kIntegers + i)];
    if (!value.isInt()) return context.fail(Error::InvalidArgument);
    integers[i] = value.toInt();
  }
  const EValue &scale = *arguments[kScale], &out = *arguments[kOut];
  if (!scale.isDouble() || !out.isTensor()) return context.fail(Error::InvalidArgument);
  const CachedAttentionAttributes node = {
      integers[0], 0, integers[1], integers[2], integers[3], integers[4], float(scale.toDouble())};
  Error error = Error::Ok;
  if (!attend(tensors, node, out.toTensor(), error)) context.fail(error);
}

void head_linear_out(KernelRuntimeContext& context, Span<EValue*> arguments) {
  constexpr const char* kName = "edgeqkv::head_linear";
  const Tensor* t[4] = {};  // x, weight, scale, out
  if (arguments.size() < 4 || !read_tensors(arguments, 4, t)) return context.fail(Error::InvalidArgument);
  auto fail = [&](const char* why) {
    refuse(kName, why);
    context.fail(Error::InvalidArgument);
  };
  for (const Tensor* x : t)
    if (!x || !is(x, x == t[1] ? ScalarType::Char : ScalarType::Float)) return fail("a tensor is missing or has a wrong dtype");
  const Dims x(t[0], 1), weight(t[1]), scale(t[2]), out(t[3], 1);
  edgeqkv_head_linear_args args = {};
  if (const char* why = set_shape(x.shape(), weight.shape(), scale.shape(), args)) return fail(why);
  if (!out.shape().is({args.n_token, int64_t(args.n_head) * args.n_out})) return fail("out has a wrong shape");
  args.x = data<const float>(t[0]);
  args.weight = data<const int8_t>(t[1]);
  args.scale = data<const float>(t[2]);
  args.y = data<float>(t[3]);
  const Pool pool;
  const int32_t status = edgeqkv_head_linear(&args, pool.parallel_for(), pool.pool, pool.n_thread);
  if (status == EDGEQKV_NO_MEMORY) return context.fail(Error::MemoryAllocationFailed);
  if (status != EDGEQKV_OK) return fail("the kernel does not take these shapes");
}

// Of two copies in one process the first serves: ExecuTorch ends the process where a name is registered twice.
Error register_once(const Kernel& kernel) {
  for (const Kernel& known : ::executorch::runtime::get_registered_kernels())
    if (std::strcmp(known.name_, kernel.name_) == 0) return Error::Ok;
  return register_kernel(kernel);
}

const Error registered[] = {register_once(Kernel("edgeqkv::cached_attention.out", cached_attention_out)),
                            register_once(Kernel("edgeqkv::head_linear.out", head_linear_out))};

}  // namespace
}  // namespace edgeqkv::executorch
